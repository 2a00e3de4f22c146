if(TARGET quire_model)
  quire_test(unit_model_config LABEL unit SOURCES ${QUIRE_TEST_DIR}/model_config_test.cc LIBS quire_model)
  quire_test(unit_model_safetensors LABEL unit SOURCES ${QUIRE_TEST_DIR}/model_safetensors_test.cc LIBS quire_model)
endif()
