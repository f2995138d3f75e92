"""What version 1 keeps beside its classes."""

import typing

from llm_datadist._managers import _check_per_layer, _layers
from llm_datadist._status import raise_if_false

from .utils.utils import check_isinstance

Layers = typing.Optional[range]


def layer_range_to_tensor_indices(src_layer_range: Layers, dst_layer_range: Layers,
                                  tensor_num_per_layer: int = 2
                                  ) -> typing.Tuple[typing.List[int], typing.List[int]]:
    """The tensors of these layers, at the source and at the destination; [] for None."""
    _check_per_layer(tensor_num_per_layer)

    def tensors(name: str, layers: Layers) -> typing.List[int]:
        checked = _layers(name, layers) or range(0)
        return list(range(checked.start * tensor_num_per_layer, checked.stop * tensor_num_per_layer))

    return tensors("src_layer_range", src_layer_range), tensors("dst_layer_range", dst_layer_range)


def parse_listen_ip_info(listen_ip_info: str) -> typing.Tuple[str, int]:
    """"ip:port" in its two parts."""
    check_isinstance("listen_ip_info", listen_ip_info, str, allow_none=False)
    ip, colon, port = listen_ip_info.rpartition(":")
    raise_if_false(colon and port.isascii() and port.isdigit(),
                   '{} is no listen_ip_info, expected "ip:port"', listen_ip_info)
    return ip, int(port)


__all__ = ["layer_range_to_tensor_indices", "parse_listen_ip_info"]
