#include "server/tenant_limits.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "src/base/retry_delay.h"

namespace quire::server {
namespace {

constexpr double kSmooth = 1.0 / 8;

int64_t ms_rounded_up(int64_t us) {
  return (us + 999) / 1000;
}

}  // namespace

// ---- leases ----

struct TenantLease::Held {
  std::shared_ptr<TenantLimiter> limiter;
  TenantLimiter::Tenant& tenant;  // not forgotten while it has requests running
  int64_t charged_tokens, started_us;
};

TenantLease::TenantLease() = default;
TenantLease::TenantLease(TenantLease&& other) noexcept = default;
TenantLease::TenantLease(std::unique_ptr<Held> held) : held_(std::move(held)) {}

TenantLease::~TenantLease() {
  settle(0);
}

void TenantLease::settle(int64_t used_tokens) {
  if (!held_) return;
  const std::unique_ptr<Held> held = std::move(held_);
  TenantLimiter& limiter = *held->limiter;
  const std::lock_guard lock(limiter.mutex_);
  const int64_t now_us = limiter.clock_.now_us();
  if (used_tokens > 0) limiter.learn(held->tenant, now_us - held->started_us);
  held->tenant.tokens.take(used_tokens - held->charged_tokens, now_us);
  if (--held->tenant.num_running == 0) limiter.become_idle(held->tenant, now_us);
}

// ---- who may ----

// What stands in the way of one request.
struct TenantLimiter::Verdict {
  const std::string& tenant;
  std::string message;
  std::vector<QuotaViolation> violations;
  std::optional<int64_t> retry_ms = 0;  // none: trying again does not help

  void add(const char* limit, int64_t value, const std::string& what, std::optional<int64_t> wait_ms) {
    message += fmt::format("{}{} ({})", message.empty() ? "" : "; ", what, limit);
    violations.push_back({.subject = tenant, .description = what, .limit = limit, .value = value});
    if (retry_ms) retry_ms = wait_ms ? std::optional(std::max(*retry_ms, *wait_ms)) : std::nullopt;
  }
};

TenantLimiter::Admission TenantLimiter::admit(const std::string& tenant_name, int64_t tokens) {
  if (!limits_.any()) return {};
  const std::lock_guard lock(mutex_);
  const int64_t now_us = clock_.now_us();
  forget_old(now_us);
  Tenant& tenant = find(tenant_name, now_us);
  if (std::optional<QuotaRefusal> refusal = check(tenant, tokens, now_us)) {
    if (tenant.num_running == 0) become_idle(tenant, now_us);
    return {.lease = {}, .refusal = std::move(refusal)};
  }
  tenant.requests.take(1, now_us);
  tenant.tokens.take(tokens, now_us);
  ++tenant.num_running;
  return {
      .lease = TenantLease(std::make_unique<TenantLease::Held>(TenantLease::Held{
          .limiter = shared_from_this(), .tenant = tenant, .charged_tokens = tokens, .started_us = now_us})),
      .refusal = {}};
}

void TenantLimiter::learn(Tenant& tenant, int64_t run_us) {
  const auto ran_us = static_cast<double>(run_us);
  mean_run_us_ += kSmooth * (ran_us - mean_run_us_);
  double& own_us = tenant.mean_run_us;
  own_us = own_us > 0 ? own_us + kSmooth * (ran_us - own_us) : ran_us;
}

// How long a request runs nobody knows beforehand: places become free at the rate at which the client's own ended of
// late, and each that is refused is told of the next one, not all of the same. Within one run's time all that run now
// have ended, by that rate: then it goes round again, so that who asks at every moment puts nobody off for longer.
int64_t TenantLimiter::wait_for_a_place_us(Tenant& tenant, int64_t now_us) const {
  const double run_us = tenant.mean_run_us > 0 ? tenant.mean_run_us : mean_run_us_;
  const auto next_us = static_cast<int64_t>(run_us / static_cast<double>(tenant.num_running));
  tenant.promised_us = std::max(tenant.promised_us, now_us) + next_us;
  if (static_cast<double>(tenant.promised_us - now_us) > run_us) tenant.promised_us = now_us + next_us;
  return tenant.promised_us - now_us;
}

std::optional<QuotaRefusal> TenantLimiter::check(Tenant& tenant, int64_t tokens, int64_t now_us) {
  Verdict verdict{.tenant = *tenant.name, .message = {}, .violations = {}};
  if (limits_.max_parallel_requests > 0 && tenant.num_running >= limits_.max_parallel_requests) {
    ++stats_.refused_parallel_total;
    verdict.add(
        "max_tenant_parallel_requests", limits_.max_parallel_requests,
        fmt::format("{} requests run; at most {} may", tenant.num_running, limits_.max_parallel_requests),
        retry_delay_of(ms_rounded_up(wait_for_a_place_us(tenant, now_us))));
  }
  if (const auto wait_us = tenant.requests.wait_us(1, now_us); wait_us != 0) {
    ++stats_.refused_requests_total;
    verdict.add("max_tenant_requests_per_minute", limits_.max_requests_per_minute,
                fmt::format("{} requests a minute may be made, and all are", limits_.max_requests_per_minute),
                ms_rounded_up(*wait_us));
  }
  if (const auto wait_us = tenant.tokens.wait_us(tokens, now_us); wait_us != 0) {
    ++stats_.refused_tokens_total;
    verdict.add("max_tenant_tokens_per_minute", limits_.max_tokens_per_minute,
                fmt::format("the request may use {} tokens; of {} a minute {} are left", tokens,
                            limits_.max_tokens_per_minute, tenant.tokens.left()),
                wait_us ? std::optional(ms_rounded_up(*wait_us)) : std::nullopt);
  }
  if (verdict.violations.empty()) return {};
  return QuotaRefusal{.error = {.code = Code::kResourceExhausted,
                                .message = fmt::format("{}: {}", *tenant.name, verdict.message),
                                .field = {},
                                .retry_delay_ms = verdict.retry_ms},
                      .violations = std::move(verdict.violations)};
}

TenantStats TenantLimiter::stats() const {
  const std::lock_guard lock(mutex_);
  TenantStats stats = stats_;
  stats.tenants = static_cast<int64_t>(tenants_.size());
  return stats;
}

// ---- who is remembered ----

TenantLimiter::Tenant& TenantLimiter::find(const std::string& name, int64_t now_us) {
  const auto [at, is_new] = tenants_.try_emplace(name, limits_, now_us);
  Tenant& tenant = at->second;
  tenant.name = &at->first;
  if (!is_new && tenant.num_running == 0) idle_.erase(tenant.in_idle);
  return tenant;
}

void TenantLimiter::become_idle(Tenant& tenant, int64_t now_us) {
  tenant.in_idle = idle_.insert(idle_.end(), &tenant);
  tenant.idle_since_us = now_us;
  forget_old(now_us);
  if (idle_.size() > kMaxIdle) forget(*idle_.front());
}

void TenantLimiter::forget(Tenant& tenant) {
  idle_.erase(tenant.in_idle);
  tenants_.erase(tenants_.find(*tenant.name));
}

bool TenantLimiter::is_as_new(Tenant& tenant, int64_t now_us) const {
  const bool known = limits_.max_parallel_requests > 0 && tenant.mean_run_us > 0;
  return tenant.requests.is_full(now_us) && tenant.tokens.is_full(now_us) &&
         (!known || now_us - tenant.idle_since_us >= kRememberUs);
}

// Two at a time: as many as could have come since the last call, and one more.
void TenantLimiter::forget_old(int64_t now_us) {
  for (int i = 0; i < 2 && !idle_.empty(); ++i) {
    Tenant& oldest = *idle_.front();
    if (!is_as_new(oldest, now_us)) return;
    forget(oldest);
  }
}

}  // namespace quire::server
