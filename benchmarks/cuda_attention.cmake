# Times attention on a card; static cudart, so it is carried to a machine without a toolkit as one file.
if(TARGET quire_kernels_cuda_card)
  add_executable(quire_cuda_attention_bench cuda/attention_bench.cu cuda/attention_bench_rig.cu)
  target_link_libraries(quire_cuda_attention_bench PRIVATE quire_options quire_kernels_cuda)
  target_link_options(quire_cuda_attention_bench PRIVATE -static-libstdc++ -static-libgcc)
endif()
