// What one client may take: requests running at once, requests a minute, tokens a minute. Asked before anything of a request is queued.
// Any thread; one lock, held for a look-up and some sums.
//
// A request is charged what it may use at most and gives back what it did not; so one whose prompt was estimated too low leaves its client's
// bucket below nothing, and the client waits that off. A refused request is charged nothing.
//
// Whose buckets are full again and who runs nothing is as good as never seen, and is forgotten; where requests at once are limited, a minute
// after the last that ran, as how long those ran is what a refusal goes by. Of the others who run nothing kMaxIdle are remembered, the
// latest: names cost no memory without bound, and forgetting one gives away a minute's worth.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "server/status.h"
#include "server/token_bucket.h"
#include "src/base/clock.h"

namespace quire::server {

// 0 = no limit, of each.
struct TenantLimits {
  int64_t max_parallel_requests = 0;
  int64_t max_requests_per_minute = 0;
  int64_t max_tokens_per_minute = 0;  // prompts and new tokens

  bool any() const {
    return max_parallel_requests > 0 || max_requests_per_minute > 0 || max_tokens_per_minute > 0;
  }
};

struct TenantStats {
  int64_t tenants = 0;  // running, or not yet forgotten
  int64_t refused_parallel_total = 0, refused_requests_total = 0, refused_tokens_total = 0;
};

struct QuotaRefusal {
  Error error;
  std::vector<QuotaViolation> violations;
};

class TenantLimiter;

// One admitted request's place and tokens. Not for several threads at once; may outlive the server that gave it.
class TenantLease {
 public:
  TenantLease();  // where nothing is limited
  TenantLease(TenantLease&& other) noexcept;
  TenantLease& operator=(TenantLease&&) = delete;
  ~TenantLease();

  // The request has ended, so another may run, and used so many tokens: the rest goes back. One that used none never ran, and says nothing
  // of how long requests run. Once; later calls do nothing.
  void settle(int64_t used_tokens);

 private:
  friend class TenantLimiter;
  struct Held;
  explicit TenantLease(std::unique_ptr<Held> held);
  std::unique_ptr<Held> held_;
};

class TenantLimiter : public std::enable_shared_from_this<TenantLimiter> {
 public:
  static constexpr size_t kMaxIdle = 1024;
  static constexpr int64_t kRememberUs = 60'000'000;

  // The clock outlives it.
  TenantLimiter(const TenantLimits& limits, const Clock& clock) : limits_(limits), clock_(clock) {}

  struct Admission {
    TenantLease lease;
    std::optional<QuotaRefusal> refusal;
  };
  // `tokens`: what the request may use at most.
  Admission admit(const std::string& tenant, int64_t tokens);
  TenantStats stats() const;

 private:
  friend class TenantLease;
  struct Tenant {
    Tenant(const TenantLimits& limits, int64_t now_us)
        : requests(limits.max_requests_per_minute, now_us), tokens(limits.max_tokens_per_minute, now_us) {}

    const std::string* name = nullptr;  // the key it is under
    int64_t num_running = 0;            // not forgotten until there are none
    TokenBucket requests, tokens;
    std::list<Tenant*>::iterator in_idle;  // where none runs
    int64_t idle_since_us = 0;             // where none runs
    double mean_run_us = 0;                // of its requests that ran, since it is known; 0: none has ended
    int64_t promised_us = 0;               // when the last that found no place was told to come
  };
  struct Verdict;

  // With mutex_ held, all of them.
  Tenant& find(const std::string& name, int64_t now_us);
  std::optional<QuotaRefusal> check(Tenant& tenant, int64_t tokens, int64_t now_us);
  int64_t wait_for_a_place_us(Tenant& tenant, int64_t now_us) const;
  void learn(Tenant& tenant, int64_t run_us);
  void become_idle(Tenant& tenant, int64_t now_us);
  bool is_as_new(Tenant& tenant, int64_t now_us) const;
  void forget(Tenant& tenant);
  void forget_old(int64_t now_us);

  const TenantLimits limits_;
  const Clock& clock_;
  mutable std::mutex mutex_;
  std::unordered_map<std::string, Tenant> tenants_;
  std::list<Tenant*> idle_;  // by when they became idle
  TenantStats stats_;
  double mean_run_us_ = 1e6;  // of all tenants' that ran, for those of whom none has ended; at first a guess
};

}  // namespace quire::server
