add_executable(cache_bench ${CMAKE_CURRENT_SOURCE_DIR}/cache_bench.cc)
target_link_libraries(cache_bench PRIVATE quire_cache)
