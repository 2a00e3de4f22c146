if(TARGET quire_execute)
  add_executable(prefix_groups_bench ${CMAKE_CURRENT_SOURCE_DIR}/prefix_groups_bench.cc)
  target_link_libraries(prefix_groups_bench PRIVATE quire_execute)
endif()
