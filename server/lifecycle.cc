#include "server/lifecycle.h"

#include <fmt/format.h>
#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "src/base/clock.h"
#include "src/base/log.h"
#include "src/base/threads.h"

namespace quire::server {
namespace {

constexpr int64_t kFinishGraceMs =
    2000;                               // for the last messages of drained calls to be taken by their clients
constexpr int64_t kCloseGraceMs = 200;  // for connections to close in order; an idle client may never answer

constexpr int64_t kLeastEngineCloseMs = 10'000;  // for copies that are under way, however short a drain is

// A terminal that closes (SIGHUP) stops a server too, unless it was started to outlive it (nohup).
bool heeds_hangup() {
  struct sigaction action{};
  return sigaction(SIGHUP, nullptr, &action) == 0 && action.sa_handler != SIG_IGN;
}

sigset_t stop_signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  if (heeds_hangup()) sigaddset(&set, SIGHUP);
  return set;
}

// The signal that came within timeout_ms, or 0.
int wait_for_signal(int64_t timeout_ms) {
  const sigset_t set = stop_signals();
  const timespec timeout{.tv_sec = timeout_ms / 1000, .tv_nsec = timeout_ms % 1000 * 1'000'000};
  const int signal = sigtimedwait(&set, nullptr, &timeout);
  return signal > 0 ? signal : 0;
}

int64_t now_us() {
  return SteadyClock().now_us();
}

// Between start() and its own end a stop signal ends the process at once, and so does what `watch` is told to look for.
class ProcessEnd {
 public:
  explicit ProcessEnd(const char* phase) : phase_(phase) {}
  ~ProcessEnd() {
    done_ = true;
    if (thread_.joinable()) thread_.join();
  }

  Status start() {
    Result<std::jthread> thread =
        start_thread(fmt::format("stop signals while {}", phase_), [this] { run(); });
    if (!thread) return thread.error();
    thread_ = std::move(*thread);
    return ok();
  }

  // Exit code 1 once `hangs` is true, `why` in the log. When the call returns, what was watched before is not asked any more.
  void watch(const char* why, std::function<bool()> hangs) {
    const std::lock_guard lock(mutex_);
    why_ = why;
    hangs_ = std::move(hangs);
  }

 private:
  void end_if_it_hangs() {
    const std::lock_guard lock(mutex_);
    if (!hangs_ || !hangs_()) return;
    log_line(LogLevel::kError, "stopped_wedged", {{"why", why_}, {"phase", phase_}});
    std::_Exit(1);
  }

  void run() {
    while (!done_) {
      const int signal = wait_for_signal(50);
      if (signal == 0) {
        end_if_it_hangs();
        continue;
      }
      log_line(LogLevel::kWarn, "stopped_at_once", {{"signal", signal}, {"phase", phase_}});
      std::_Exit(128 + signal);
    }
  }

  const char* const phase_;
  std::atomic<bool> done_ = false;
  std::mutex mutex_;
  const char* why_ = "";
  std::function<bool()> hangs_;
  std::jthread thread_;
};

bool is_wedged(const EngineStats& stats, int64_t after_ms) {
  return stats.last_step_age_ms > static_cast<double>(after_ms);
}

// Until a stop signal comes; keeps the health status true meanwhile.
int serve_until_signal(Engine& engine, Listener& listener, int64_t wedged_after_ms) {
  bool serving = true;
  for (;;) {
    if (const int signal = wait_for_signal(1000); signal != 0) return signal;
    const bool healthy = !is_wedged(engine.stats(), wedged_after_ms);
    if (healthy == serving) continue;
    serving = healthy;
    listener.set_serving(kServiceName, serving);
    log_line(LogLevel::kError, serving ? "engine_recovered" : "engine_wedged",
             {{"no_step_for_ms_limit", wedged_after_ms}});
  }
}

void wait_until(int64_t until_us, const std::function<bool()>& holds) {
  while (!holds() && now_us() < until_us) std::this_thread::sleep_for(std::chrono::milliseconds(5));
}

// Requests, then texts: Tokenize and Detokenize are taken until the last request has ended.
void end_calls(Engine& engine, GenerationServer& service, int64_t timeout_ms) {
  const int64_t until_us = now_us() + timeout_ms * 1000;
  engine.drain(timeout_ms);
  service.close_texts();
  wait_until(now_us() + kFinishGraceMs * 1000, [&] { return service.num_calls() == 0; });
  wait_until(until_us, [&] { return service.num_unfinished_texts() == 0; });
  service.end_texts();
}

void drain(Engine& engine, GenerationServer& service, Listener& listener, int signal, ProcessEnd& process_end,
           int64_t wedged_after_ms) {
  if (signal == SIGHUP) ::signal(SIGHUP, SIG_IGN);  // the kernel and a shell both send it: no second signal
  if (const Status heard = process_end.start(); !heard)  // the drain ends by itself, unless something hangs
    log_line(LogLevel::kWarn, "second_signal_unheard", {{"why", heard.error().message}});
  const int64_t timeout_ms = engine.config().drain_timeout_ms;
  const int64_t until_us = now_us() + timeout_ms * 1000;
  process_end.watch("no step ends", [&engine, until_us, wedged_after_ms] {
    return now_us() > until_us && is_wedged(engine.stats(), wedged_after_ms);
  });
  const EngineStats stats = engine.stats();
  log_line(LogLevel::kInfo, "drain",
           {{"signal", signal},
            {"running", stats.sequences_running},
            {"preempted", stats.sequences_preempted},
            {"waiting", stats.requests_waiting},
            {"timeout_ms", timeout_ms}});
  listener.set_serving(kServiceName, false);
  service.set_draining();
  end_calls(engine, service, timeout_ms);
  // The engine is about to go. It waits for its copies, to a disk too, of which one may never return.
  const int64_t closed_by_us = now_us() + std::max(timeout_ms, kLeastEngineCloseMs) * 1000;
  process_end.watch("a copy between the cache's tiers does not end",
                    [closed_by_us] { return now_us() > closed_by_us; });
  listener.shut_down(kCloseGraceMs);
  // A text is read to its end, however long it is; nobody waits for it any more.
  if (const auto texts = static_cast<int64_t>(service.num_unfinished_texts()); texts > 0) {
    log_line(LogLevel::kInfo, "stopped", {{"texts_left", texts}});
    std::_Exit(0);
  }
}

// A name that is not one plain word is written as in JSON.
std::string in_one_word(const std::string& name) {
  const bool plain = name.find_first_of(" \"\\=") == std::string::npos;
  return plain ? name : nlohmann::json(name).dump();
}

// Whoever started the server waits for this line.
Status say_ready(const std::string& address, const std::string& model) {
  fmt::print("READY grpc={} model={}\n", address, in_one_word(model));
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return ok();
  return error(Code::kInternal, fmt::format("standard output, for the READY line: {}", std::strerror(errno)));
}

// gRPC takes its limits as int.
Status check_limits(const ServeOptions& options) {
  struct Limit {
    const char* flag;
    int64_t value, least, most;
  };
  constexpr int64_t kInt = std::numeric_limits<int32_t>::max();
  const ListenOptions& listen = options.listen;
  const ServiceOptions& service = options.service;
  for (const Limit& limit :
       {Limit{"--max-message-bytes", listen.max_message_bytes, 1024, kInt},
        Limit{"--max-metadata-bytes", listen.max_metadata_bytes, 1024, 1 << 20},
        Limit{"--max-connections", listen.max_connections, 1, 1 << 20},
        Limit{"--max-streams-per-connection", listen.max_streams_per_connection, 1, kInt},
        Limit{"--idle-connection-ms", listen.idle_connection_ms, 1, kInt},
        Limit{"--max-connection-age-ms", listen.max_connection_age_ms, 1, kInt},
        Limit{"--max-backlog-bytes", service.stream.max_backlog_bytes, 1, kInt},
        Limit{"--max-stall-ms", service.stream.max_stall_ms, 1, kInt},
        Limit{"--text-threads", service.texts.threads, 0, 1024},
        Limit{"--max-queued-texts", service.texts.max_queued, 1, kInt},
        Limit{"--max-queued-text-bytes", service.texts.max_queued_bytes, 1, int64_t{1} << 40},
        Limit{"--max-tenant-parallel-requests", service.tenants.max_parallel_requests, 0, kInt},
        Limit{"--max-tenant-requests-per-minute", service.tenants.max_requests_per_minute, 0,
              TokenBucket::kMostPerMinute},
        Limit{"--max-tenant-tokens-per-minute", service.tenants.max_tokens_per_minute, 0,
              TokenBucket::kMostPerMinute},
        Limit{"--max-host-memory-bytes", service.host_memory.max_bytes, -1, int64_t{1} << 60},
        Limit{"--wedged-after-ms", options.wedged_after_ms, 1, kInt}})
    if (limit.value < limit.least || limit.value > limit.most)
      return invalid(fmt::format("{} is {}; it must be from {} to {}", limit.flag, limit.value, limit.least,
                                 limit.most));
  return ok();
}

// Says so when all that was declared after it has gone.
struct SaysStopped {
  ~SaysStopped() {
    if (served) log_line(LogLevel::kInfo, "stopped", {{"texts_left", 0}});
  }
  bool served = false;
};

}  // namespace

void block_stop_signals() {
  const sigset_t set = stop_signals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  signal(SIGPIPE, SIG_IGN);
}

Status serve(const ServeOptions& options, const std::function<Result<std::unique_ptr<Engine>>()>& open_engine,
             const std::function<int64_t(const Engine&)>& untouched_host_bytes) {
  if (Status limits = check_limits(options); !limits) return limits;
  // Until the engine has gone too, which ends its copies to a disk first.
  ProcessEnd process_end("draining");
  SaysStopped stopped;
  std::unique_ptr<Engine> engine;  // outlives the calls: the listener below ends first
  GenerationServer service(options.service);
  if (Status started = service.start(); !started) return started;
  Result<std::unique_ptr<Listener>> listener = Listener::open(options.listen, service);
  if (!listener) return listener.error();
  (*listener)->set_serving(kServiceName, false);
  {
    ProcessEnd while_loading("loading");
    if (Status started = while_loading.start(); !started) return started;
    Result<std::unique_ptr<Engine>> opened = open_engine();
    if (!opened) return opened.error();
    engine = std::move(opened).value();
  }
  if (Status room = service.watch_host_memory(untouched_host_bytes(*engine)); !room) return room;
  service.set_engine(engine.get());
  (*listener)->set_serving(kServiceName, true);
  if (Status said = say_ready((*listener)->address(), engine->model().name); !said) return said;
  const int signal = serve_until_signal(*engine, **listener, options.wedged_after_ms);
  drain(*engine, service, **listener, signal, process_end, options.wedged_after_ms);
  stopped.served = true;
  return ok();
}

}  // namespace quire::server
