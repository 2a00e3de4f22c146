add_executable(disk_io_bench ${CMAKE_CURRENT_SOURCE_DIR}/disk_io_bench.cc)
target_link_libraries(disk_io_bench PRIVATE quire_base)
