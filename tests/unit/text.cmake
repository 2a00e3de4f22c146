if(TARGET quire_text)
  find_package(nlohmann_json REQUIRED)
  foreach(area chat_template detokenizer stop_matcher tokenizer)
    quire_test(text_${area}_test LABEL unit SOURCES ${QUIRE_TEST_DIR}/text_${area}_test.cc
      LIBS quire_text nlohmann_json::nlohmann_json)
  endforeach()
  target_sources(text_tokenizer_test PRIVATE ${QUIRE_TEST_DIR}/text_cuts_test.cc ${QUIRE_TEST_DIR}/text_guard_test.cc
    ${QUIRE_TEST_DIR}/text_reserved_test.cc
    ${QUIRE_TEST_DIR}/text_wrong_files_test.cc)
  target_sources(text_chat_template_test PRIVATE ${QUIRE_TEST_DIR}/text_chat_bounds_test.cc)
endif()
