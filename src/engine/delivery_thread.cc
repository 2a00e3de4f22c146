#include "src/engine/delivery_thread.h"

#include "src/base/threads.h"

namespace quire {

DeliveryThread::DeliveryThread(const TextFront& text, std::vector<int32_t> layer_windows,
                               Delivery::Hooks hooks)
    : delivery_(text, std::move(layer_windows), std::move(hooks)) {}

Status DeliveryThread::start() {
  Result<std::jthread> thread = start_thread("delivery", [this] { serve(); });
  if (!thread) return thread.error();
  thread_ = std::move(*thread);
  return ok();
}

DeliveryThread::~DeliveryThread() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  arrived_.notify_one();
  if (thread_.joinable()) thread_.join();
}

void DeliveryThread::open(DeliveryRequest request) {
  {
    const std::lock_guard lock(mutex_);
    items_.emplace_back(std::move(request));
  }
  arrived_.notify_one();
}

void DeliveryThread::deliver(Outcome outcome) {
  {
    std::unique_lock lock(mutex_);
    taken_.wait(lock, [this] { return num_outcomes_ < kMaxBacklog; });
    ++num_outcomes_;
    items_.emplace_back(std::move(outcome));
  }
  arrived_.notify_one();
}

void DeliveryThread::serve() {
  std::deque<Item> batch;
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      arrived_.wait(lock, [this] { return stopping_ || !items_.empty(); });
      if (items_.empty()) return;
      batch.swap(items_);
    }
    for (Item& item : batch) {
      if (auto* request = std::get_if<DeliveryRequest>(&item)) {
        delivery_.open(std::move(*request));
        continue;
      }
      delivery_.deliver(std::move(std::get<Outcome>(item)));
      {
        const std::lock_guard lock(mutex_);
        --num_outcomes_;
      }
      taken_.notify_one();
    }
    batch.clear();
  }
}

}  // namespace quire
