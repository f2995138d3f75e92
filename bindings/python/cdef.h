/* What the Python package uses of llm_datadist_c.h, in the form that cffi reads.  The C compiler checks
 * every line of it against the header when the module is built. */

typedef uint32_t llm_status;
typedef struct llm_datadist llm_datadist;
typedef int... llm_role;
typedef int... llm_log_level;

static const uint32_t LLM_SUCCESS;
static const uint32_t LLM_TRANSFER_PENDING;
static const uint32_t LLM_NO_NOTIFICATION;

const char *llm_status_name(llm_status status);
const char *llm_status_text(llm_status status);
int llm_status_recoverable(llm_status status);

typedef struct {
    const char *key;
    const char *value;
} llm_option;

typedef struct {
    size_t struct_size;
    const char *key;
    const char *default_value;
    const char *help;
} llm_option_info;
llm_status llm_get_option_info(size_t index, llm_option_info *info);

llm_status llm_create(uint64_t cluster_id, llm_role role, llm_datadist **ret_dd);
void llm_destroy(llm_datadist *dd);
llm_status llm_initialize(llm_datadist *dd, const llm_option *options, size_t num_options);
void llm_finalize(llm_datadist *dd);
llm_status llm_set_role(llm_datadist *dd, llm_role role, const llm_option *options,
                        size_t num_options);

uint32_t llm_data_type_bits(int32_t data_type);

typedef struct {
    size_t struct_size;
    uint32_t placement;
    uint32_t num_tensors;
    int32_t data_type;
    const int64_t *shape;
    size_t num_dims;
} llm_cache_desc;

typedef struct {
    size_t struct_size;
    int64_t cache_id;
    const llm_cache_desc *desc;
    uintptr_t *tensor_addrs;
    size_t num_tensor_addrs;
} llm_cache;

llm_status llm_allocate_cache(llm_datadist *dd, const llm_cache_desc *desc, llm_cache *cache);
llm_status llm_deallocate_cache(llm_datadist *dd, int64_t cache_id);
llm_status llm_register_kv_cache(llm_datadist *dd, const llm_cache_desc *desc,
                                 const uint64_t *addrs, size_t num_addrs, int64_t *ret_cache_id);
llm_status llm_unregister_kv_cache(llm_datadist *dd, int64_t cache_id);

typedef struct {
    const char *ip;
    uint16_t port;
} llm_ip_info;

typedef struct {
    size_t struct_size;
    uint64_t remote_cluster_id;
    int32_t remote_role_type;
    const llm_ip_info *local_ip_infos;
    size_t num_local_ip_infos;
    const llm_ip_info *remote_ip_infos;
    size_t num_remote_ip_infos;
} llm_cluster_info;

llm_status llm_link_clusters(llm_datadist *dd, const llm_cluster_info *clusters,
                             size_t num_clusters, llm_status *rets, size_t *ret_num_rets,
                             int32_t timeout_ms);
llm_status llm_unlink_clusters(llm_datadist *dd, const llm_cluster_info *clusters,
                               size_t num_clusters, llm_status *rets, size_t *ret_num_rets,
                               int32_t timeout_ms, int force);

typedef struct {
    size_t struct_size;
    uint64_t cluster_id;
    int64_t cache_id;
    uint32_t batch_index;
} llm_cache_index;

typedef struct {
    size_t struct_size;
    int32_t src_layer_range[2];
    int32_t dst_layer_range[2];
    uint32_t tensor_num_per_layer;
    uint32_t timeout_ms;
    const void *notification;
    size_t notification_bytes;
} llm_kv_cache_ext_param;

llm_status llm_pull_kv_cache(llm_datadist *dd, const llm_cache_index *src, const llm_cache *dst,
                             uint32_t dst_batch_index, int64_t size,
                             const llm_kv_cache_ext_param *param);
llm_status llm_pull_kv_blocks(llm_datadist *dd, const llm_cache_index *src, const llm_cache *dst,
                              const uint64_t *src_blocks, size_t num_src_blocks,
                              const uint64_t *dst_blocks, size_t num_dst_blocks,
                              const llm_kv_cache_ext_param *param);
llm_status llm_push_kv_cache(llm_datadist *dd, const llm_cache *src, const llm_cache_index *dst,
                             uint32_t src_batch_index, int64_t size,
                             const llm_kv_cache_ext_param *param);
llm_status llm_push_kv_blocks(llm_datadist *dd, const llm_cache *src, const llm_cache_index *dst,
                              const uint64_t *src_blocks, size_t num_src_blocks,
                              const uint64_t *dst_blocks, size_t num_dst_blocks,
                              const llm_kv_cache_ext_param *param);

llm_status llm_start_pull_kv_cache(llm_datadist *dd, const llm_cache_index *src,
                                   const llm_cache *dst, uint32_t dst_batch_index, int64_t size,
                                   const llm_kv_cache_ext_param *param, uint64_t *ret_transfer_id);
llm_status llm_start_pull_kv_blocks(llm_datadist *dd, const llm_cache_index *src,
                                    const llm_cache *dst, const uint64_t *src_blocks,
                                    size_t num_src_blocks, const uint64_t *dst_blocks,
                                    size_t num_dst_blocks, const llm_kv_cache_ext_param *param,
                                    uint64_t *ret_transfer_id);
llm_status llm_start_push_kv_cache(llm_datadist *dd, const llm_cache *src,
                                   const llm_cache_index *dst, uint32_t src_batch_index,
                                   int64_t size, const llm_kv_cache_ext_param *param,
                                   uint64_t *ret_transfer_id);
llm_status llm_start_push_kv_blocks(llm_datadist *dd, const llm_cache *src,
                                    const llm_cache_index *dst, const uint64_t *src_blocks,
                                    size_t num_src_blocks, const uint64_t *dst_blocks,
                                    size_t num_dst_blocks, const llm_kv_cache_ext_param *param,
                                    uint64_t *ret_transfer_id);
llm_status llm_transfer_poll(llm_datadist *dd, uint64_t transfer_id);
llm_status llm_transfer_wait(llm_datadist *dd, uint64_t transfer_id, int32_t timeout_ms);
llm_status llm_transfer_cancel(llm_datadist *dd, uint64_t transfer_id);
llm_status llm_transfer_release(llm_datadist *dd, uint64_t transfer_id);
int llm_transfer_fd(llm_datadist *dd);
llm_status llm_poll_notification(llm_datadist *dd, uint64_t *ret_cluster_id, void *buf, size_t size,
                                 size_t *ret_bytes);
int llm_notification_fd(llm_datadist *dd);
#define LLM_NOTIFICATION_BYTES_MAX 4096

llm_status llm_copy_kv_cache(llm_datadist *dd, const llm_cache *src, const llm_cache *dst,
                             uint32_t src_batch_index, uint32_t dst_batch_index, uint64_t offset,
                             int64_t size);
llm_status llm_copy_kv_blocks(llm_datadist *dd, const llm_cache *src, const llm_cache *dst,
                              const uint64_t *src_blocks, size_t num_src_blocks,
                              const uint64_t *const *dst_blocks_list, const size_t *num_dst_blocks,
                              size_t num_dst_lists);

typedef struct {
    size_t struct_size;
    uint64_t cluster_id;
    uint32_t state;
    uint32_t num_devices;
    char transport[16];
    char reason[232];
} llm_link_info;
llm_status llm_get_link_info(llm_datadist *dd, uint64_t cluster_id, llm_link_info *info);
llm_status llm_list_links(llm_datadist *dd, uint64_t *cluster_ids, size_t room,
                          size_t *ret_num_links);
llm_status llm_get_listen_port(llm_datadist *dd, size_t device_index, uint16_t *ret_port);
size_t llm_last_error(char *buf, size_t size);
void llm_set_log_level(llm_log_level level);
const char *llm_version(void);
size_t llm_describe(char *buf, size_t size);
