# find_package(LlmDatadist) -> LlmDatadist::llm_datadist_c; where the C++ layer is installed also
# LlmDatadist::llm_datadist_cxx, and LlmDatadist::llm_datadist_compat, which adds the original's include
# lines and its library's name to that.
include(${CMAKE_CURRENT_LIST_DIR}/LlmDatadistTargets.cmake)
