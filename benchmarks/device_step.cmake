if(TARGET quire_execute AND TARGET quire_kernels_cuda)
  add_executable(device_step_bench ${CMAKE_CURRENT_SOURCE_DIR}/device_step_bench.cc)
  target_link_libraries(device_step_bench PRIVATE quire_execute)
endif()
