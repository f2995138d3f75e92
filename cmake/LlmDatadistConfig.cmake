# find_package(LlmDatadist) -> LlmDatadist::llm_datadist_c, and LlmDatadist::llm_datadist_cxx where
# the C++ layer is installed.
include(${CMAKE_CURRENT_LIST_DIR}/LlmDatadistTargets.cmake)
