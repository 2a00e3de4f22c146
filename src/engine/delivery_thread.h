// The thread around Delivery: takes openings from whoever submits and outcomes from the engine thread, in the
// order pushed. An engine that is kMaxBacklog outcomes ahead waits: a slow sink slows the engine and does not
// fill memory. (Sinks must not block; a client that does not read is paused by the server.)
#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <variant>

#include "src/engine/delivery.h"

namespace quire {

class DeliveryThread {
 public:
  static constexpr size_t kMaxBacklog = 256;  // outcomes, one per step

  DeliveryThread(const TextFront& text, std::vector<int32_t> layer_windows, Delivery::Hooks hooks);
  ~DeliveryThread();  // delivers what was pushed, then ends

  Status start();  // once, before the first outcome

  void open(DeliveryRequest request);
  void deliver(Outcome outcome);

 private:
  using Item = std::variant<DeliveryRequest, Outcome>;
  void serve();

  Delivery delivery_;
  std::mutex mutex_;
  std::condition_variable arrived_, taken_;
  std::deque<Item> items_;
  size_t num_outcomes_ = 0;  // pushed and not delivered yet
  bool stopping_ = false;
  std::jthread thread_;
};

}  // namespace quire
