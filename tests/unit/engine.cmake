quire_test(request_test LABEL unit SOURCES ${QUIRE_TEST_DIR}/request_test.cc ${QUIRE_TEST_DIR}/waiting_queue_test.cc LIBS quire_request)
quire_test(schedule_beam_test LABEL unit SOURCES ${QUIRE_TEST_DIR}/schedule_beam_test.cc LIBS quire_schedule)
quire_test(schedule_test LABEL unit SOURCES ${QUIRE_TEST_DIR}/schedule_test.cc ${QUIRE_TEST_DIR}/schedule_prefix_test.cc ${QUIRE_TEST_DIR}/schedule_swap_test.cc
    ${QUIRE_TEST_DIR}/schedule_tail_test.cc ${QUIRE_TEST_DIR}/schedule_group_test.cc ${QUIRE_TEST_DIR}/schedule_stopped_reader_test.cc ${QUIRE_TEST_DIR}/schedule_tiers_test.cc ${QUIRE_TEST_DIR}/schedule_tiers_load_test.cc ${QUIRE_TEST_DIR}/schedule_unwanted_test.cc ${QUIRE_TEST_DIR}/schedule_both_ends_test.cc ${QUIRE_TEST_DIR}/schedule_order_test.cc ${QUIRE_TEST_DIR}/schedule_retention_test.cc
    ${QUIRE_TEST_DIR}/schedule_progress_test.cc
    ${QUIRE_TEST_DIR}/schedule_policy_memory_test.cc ${QUIRE_TEST_DIR}/schedule_policy_beams_test.cc ${QUIRE_TEST_DIR}/schedule_policy_figures_test.cc ${QUIRE_TEST_DIR}/schedule_deadline_test.cc LIBS quire_engine_core quire_fake_executor)
quire_test(fake_executor_test LABEL unit SOURCES ${QUIRE_TEST_DIR}/fake_executor_test.cc LIBS quire_fake_executor)
quire_test(engine_delivery_test LABEL unit SOURCES ${QUIRE_TEST_DIR}/engine_delivery_test.cc LIBS quire_engine_threads)
