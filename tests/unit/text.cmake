if(TARGET quire_text)
  find_package(nlohmann_json REQUIRED)
  foreach(area tokenizer detokenizer stop_matcher chat_template)
    if(EXISTS ${QUIRE_TEST_DIR}/text_${area}_test.cc)
      quire_test(text_${area}_test LABEL unit SOURCES ${QUIRE_TEST_DIR}/text_${area}_test.cc
        LIBS quire_text nlohmann_json::nlohmann_json)
    endif()
  endforeach()
endif()
