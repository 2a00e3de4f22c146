if(TARGET quire_engine)
  quire_test(golden_engine LABEL golden SOURCES ${QUIRE_TEST_DIR}/engine_test.cc LIBS quire_engine)
  quire_test(golden_engine_goldens LABEL golden SOURCES ${QUIRE_TEST_DIR}/engine_goldens_test.cc ${QUIRE_TEST_DIR}/model_runner.cc
    LIBS quire_engine quire_kernels_reference)
  quire_test(golden_micro_vectors LABEL golden SOURCES ${QUIRE_TEST_DIR}/micro_vectors_test.cc LIBS quire_engine)
  quire_test(golden_policy_swap LABEL golden SOURCES ${QUIRE_TEST_DIR}/policy_swap_test.cc LIBS quire_engine)
  quire_test(golden_swap LABEL golden SOURCES ${QUIRE_TEST_DIR}/swap_test.cc LIBS quire_engine)
  if(TARGET quire_kernels_cuda)
    target_compile_definitions(golden_swap PRIVATE QUIRE_TEST_CUDA_HOST)
    quire_test(golden_device LABEL golden TIMEOUT 600 SOURCES ${QUIRE_TEST_DIR}/device_test.cc LIBS quire_engine)
    quire_test(golden_device_tables LABEL golden SOURCES ${QUIRE_TEST_DIR}/device_tables_test.cc LIBS quire_engine)
    quire_test(golden_device_noise LABEL golden SOURCES ${QUIRE_TEST_DIR}/device_noise_test.cc LIBS quire_engine)
    quire_test(golden_cascade LABEL golden SOURCES ${QUIRE_TEST_DIR}/cascade_test.cc LIBS quire_engine)
    quire_test(golden_retention LABEL golden SOURCES ${QUIRE_TEST_DIR}/retention_test.cc LIBS quire_engine)
    quire_test(golden_device_paths LABEL golden SOURCES ${QUIRE_TEST_DIR}/device_paths_test.cc LIBS quire_engine)
    quire_test(golden_device_calls LABEL golden SOURCES ${QUIRE_TEST_DIR}/device_calls_test.cc LIBS quire_engine)
    quire_test(golden_device_faults LABEL golden SOURCES ${QUIRE_TEST_DIR}/device_faults_test.cc LIBS quire_engine)
    quire_test(golden_device_checked LABEL golden SOURCES ${QUIRE_TEST_DIR}/device_checked_test.cc LIBS quire_engine)
    quire_test(golden_retention_memory LABEL golden SOURCES ${QUIRE_TEST_DIR}/retention_memory_test.cc LIBS quire_engine)
    quire_test(golden_device_sampling LABEL golden SOURCES ${QUIRE_TEST_DIR}/device_sampling_test.cc LIBS quire_engine)
    quire_test(golden_device_traffic LABEL golden SOURCES ${QUIRE_TEST_DIR}/device_traffic_test.cc LIBS quire_engine)
    # The same program on the CUDA kernels, run on the host shim, which takes 0.02 s for a row of stories260K and 0.2 s for one of recall-9M.
    # What is left out there, and what stands for it:
    # - the goldens of engine_goldens_test.cc of the other five models (some 600 s) and of most families: golden_device runs all six alone,
    #   together, in chunks, from the cache, preempted and swapped, fewer cases of each; golden_shared_goldens their logits; golden_families
    #   every family and rope;
    # - PromptLogprobs: it wants equal bits for any chunks, which the CPU's products promise and a card's, chosen by rows, do not;
    #   golden_device_paths compares a prompt's logprobs with the CPU's;
    # - PoliciesThatChooseByScores of the demo model (520 tokens four times over, some 400 s): golden_device_paths has it on stories260K;
    # - golden_micro_vectors, which calls the CPU's kernels: golden_retention compares what the policies keep with the CPU, list by list;
    # - golden_text_nll and golden_kv_quality, thousands of tokens of the demo model: golden_shared_goldens has its logits on the shim,
    #   tests/e2e/test_kv_policies.py what each policy leaves visible there.
    function(quire_test_on_shim program filter)
      add_test(NAME ${program}_on_shim COMMAND ${program} --gtest_filter=${filter} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
      set_tests_properties(${program}_on_shim PROPERTIES LABELS golden TIMEOUT 600
        ENVIRONMENT "QUIRE_ROOT=${CMAKE_SOURCE_DIR};QUIRE_TEST_DEVICE=cuda-host")
    endfunction()
    quire_test_on_shim(golden_engine_goldens
      */EngineGoldens.*/stories260K:*/GoldensOfTiers.*/stories260K:*MixedBatches*/qwen2_window:*MixedBatches*/rope_dynamic)
    quire_test_on_shim(golden_engine -*.PromptLogprobs*:*.PoliciesThatChooseByScores*)
    quire_test_on_shim(golden_policy_swap */stream_sinks_9_recent_7:*/tova_budget_10:*/h2o_heavy_5_recent_5)
    foreach(name device device_calls device_noise device_paths device_sampling device_tables device_traffic cascade retention)
      target_link_options(golden_${name} PRIVATE -static-libstdc++ -static-libgcc)  # carried to a card as one file
    endforeach()
  endif()
endif()
if(TARGET quire)  # the quality of the policies, on a trained model and through the binary
  find_package(Python3 COMPONENTS Interpreter REQUIRED)
  add_test(NAME golden_kv_quality COMMAND ${Python3_EXECUTABLE} ${QUIRE_TEST_DIR}/kv_quality.py)
  set_tests_properties(golden_kv_quality PROPERTIES LABELS golden TIMEOUT 600 SKIP_RETURN_CODE 77
    ENVIRONMENT "QUIRE_ROOT=${CMAKE_SOURCE_DIR};QUIRE_BINARY=$<TARGET_FILE:quire>")
endif()
