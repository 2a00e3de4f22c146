// A serving process from start to end, as its operator sees it: the test starts itself again as a server over
// a FakeEngine
// (`--serve OPTIONS...`), reads its READY line, sends it signals and asks it for its health.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <map>
#include <thread>

#include "grpc/health/v1/health.grpc.pb.h"
#include "server/lifecycle.h"
#include "tests/server/rig.h"

namespace quire::server {
namespace {

namespace health = ::grpc::health::v1;
using Clock = std::chrono::steady_clock;

// ---- the server's side ----

int serve_fake(const std::map<std::string, int64_t>& options) {
  const auto option = [&](const std::string& name, int64_t otherwise) {
    const auto found = options.find(name);
    return found == options.end() ? otherwise : found->second;
  };
  block_stop_signals();
  configure_log(LogFormat::kKeyValue, LogLevel::kError);
  ServeOptions serve_options;
  serve_options.listen.port = static_cast<int32_t>(option("port", 0));
  serve_options.wedged_after_ms = option("wedged-after-ms", 1000);
  const Status served = serve(
      serve_options,
      [&]() -> Result<std::unique_ptr<Engine>> {
        std::this_thread::sleep_for(std::chrono::milliseconds(option("load-ms", 0)));
        if (option("broken", 0) != 0) return invalid("model: no such directory");
        auto engine =
            std::make_unique<FakeEngine>(FakeEngineOptions{.step_us = option("step-us", 1000),
                                                           .drain_timeout_ms = option("drain-ms", 2000),
                                                           .text_ms = option("text-ms", 0),
                                                           .close_ms = option("close-ms", 0)});
        if (option("spaced-name", 0) != 0) engine->set_name("sp ace \"d\"");
        engine->hold_texts(option("hold-texts", 0) != 0);
        engine->set_last_step_age_ms(static_cast<double>(option("step-age-ms", 0)));
        return std::unique_ptr<Engine>(std::move(engine));
      },
      [](const Engine&) { return int64_t{0}; });
  if (!served) std::fprintf(stderr, "%s\n", served.error().message.c_str());
  return served ? 0 : 1;
}

// ---- the test's side ----

class ServerProcess {
 public:
  explicit ServerProcess(const std::vector<std::string>& options) {
    int pipe_ends[2];
    if (pipe(pipe_ends) != 0) std::abort();
    std::vector<std::string> words = {"/proc/self/exe", "--serve"};
    words.insert(words.end(), options.begin(), options.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    pid_ = fork();
    if (pid_ == 0) {
      dup2(pipe_ends[1], STDOUT_FILENO);
      close(pipe_ends[0]);
      close(pipe_ends[1]);
      execv(argv[0], argv.data());
      _exit(127);
    }
    close(pipe_ends[1]);
    out_ = fdopen(pipe_ends[0], "r");
  }
  ~ServerProcess() {
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
    std::fclose(out_);
  }

  std::string read_line() {
    char line[256] = "";
    return std::fgets(line, sizeof line, out_) ? line : "";
  }
  void send(int signal) const { kill(pid_, signal); }
  // Exit code, or 1000 + signal that killed it.
  int wait() {
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
  }

 private:
  pid_t pid_ = -1;
  std::FILE* out_ = nullptr;
};

std::string address_of(const std::string& ready_line) {
  const size_t start = ready_line.find("grpc=") + 5;
  return ready_line.substr(start, ready_line.find(' ', start) - start);
}

std::shared_ptr<grpc::Channel> connect(const std::string& address) {
  return grpc::CreateChannel(address, grpc::InsecureChannelCredentials());
}

std::string health_of(const std::string& address, const std::string& service) {
  const auto stub = health::Health::NewStub(connect(address));
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(5));
  health::HealthCheckRequest request;
  request.set_service(service);
  health::HealthCheckResponse response;
  const grpc::Status status = stub->Check(&context, request, &response);
  return status.ok() ? health::HealthCheckResponse::ServingStatus_Name(response.status())
                     : status.error_message();
}

int64_t ms_since(Clock::time_point start) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - start).count();
}

TEST(Lifecycle, SaysReadyOnOneLineWithTheRealPort) {
  ServerProcess server({});
  const std::string line = server.read_line();
  EXPECT_TRUE(line.starts_with("READY grpc=127.0.0.1:")) << line;
  EXPECT_TRUE(line.ends_with(" model=fake\n")) << line;
  EXPECT_EQ(health_of(address_of(line), kServiceName), "SERVING");
}

TEST(Lifecycle, FinishesWhatRunsAtSigtermAndTakesNothingNew) {
  ServerProcess server({"drain-ms=30000"});  // 500 steps of 1 ms, and however slow the machine is
  const std::string address = address_of(server.read_line());
  const auto stub = v1::GenerationService::NewStub(connect(address));
  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, text_request("hello", 500));
  v1::GenerateResponse message;
  ASSERT_TRUE(reader->Read(&message));
  server.send(SIGTERM);
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_EQ(health_of(address, kServiceName), "NOT_SERVING");
  EXPECT_EQ(health_of(address, ""), "SERVING");
  EXPECT_EQ(run_stream(*stub, text_request("hello", 1)).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  int messages = 1;
  while (reader->Read(&message)) ++messages;
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(messages, 500);
  const auto start = Clock::now();
  EXPECT_EQ(server.wait(), 0);
  EXPECT_LT(ms_since(start), 1500) << "an idle connection must not hold the process up";
}

TEST(Lifecycle, CancelsWhatOutlastsTheDrainTimeout) {
  ServerProcess server({});
  const auto stub = v1::GenerationService::NewStub(connect(address_of(server.read_line())));
  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, text_request("hello", 1'000'000));
  v1::GenerateResponse message;
  ASSERT_TRUE(reader->Read(&message));
  const auto start = Clock::now();
  server.send(SIGTERM);
  while (reader->Read(&message)) {
  }
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_NE(status.error_message().find("2000 ms that it gives (drain_timeout_ms)"), std::string::npos)
      << status.error_message();
  EXPECT_TRUE(error_detail<google::rpc::RetryInfo>(status))
      << "another server, or this one later, may take it";
  EXPECT_GE(ms_since(start), 1900) << "the fake engine's drain timeout is 2 s";
  EXPECT_EQ(server.wait(), 0);
}

struct Read {
  grpc::Status tokenize, detokenize, generate;
};

// A text of each call that reads one, on its way when the signal comes.
Read texts_at_sigterm(const ServerProcess& server, const std::string& address) {
  Read read;
  const auto channel = connect(address);
  channel->WaitForConnected(std::chrono::system_clock::now() + std::chrono::seconds(10));
  const auto stub = v1::GenerationService::NewStub(channel);
  std::thread tokenize([&] {
    grpc::ClientContext context;
    v1::TokenizeRequest request;
    request.set_text("hello");
    v1::TokenizeResponse response;
    read.tokenize = stub->Tokenize(&context, request, &response);
  });
  std::thread detokenize([&] {
    grpc::ClientContext context;
    v1::DetokenizeRequest request;
    request.add_token_ids(65);
    v1::DetokenizeResponse response;
    read.detokenize = stub->Detokenize(&context, request, &response);
  });
  std::thread generate([&] { read.generate = run_stream(*stub, text_request("hello", 1)).status; });
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  server.send(SIGTERM);
  for (std::thread* thread : {&tokenize, &detokenize, &generate}) thread->join();
  return read;
}

TEST(Lifecycle, AnswersTheTextsThatAreOnTheirWayAtSigterm) {
  ServerProcess server({"drain-ms=30000", "text-ms=1500"});
  const Read read = texts_at_sigterm(server, address_of(server.read_line()));
  EXPECT_TRUE(read.tokenize.ok()) << read.tokenize.error_message();
  EXPECT_TRUE(read.detokenize.ok()) << read.detokenize.error_message();
  EXPECT_EQ(read.generate.error_code(), grpc::StatusCode::UNAVAILABLE) << "no request begins in a drain";
  EXPECT_EQ(server.wait(), 0);
}

TEST(Lifecycle, EndsInTimeWhateverATextsThreadDoes) {
  ServerProcess server({"drain-ms=500", "hold-texts=1"});
  const std::string address = address_of(server.read_line());
  const auto start = Clock::now();
  const Read read = texts_at_sigterm(server, address);
  for (const grpc::Status& status : {read.tokenize, read.detokenize, read.generate}) {
    EXPECT_EQ(status.error_code(), grpc::StatusCode::CANCELLED);
    EXPECT_TRUE(error_detail<google::rpc::RetryInfo>(status)) << status.error_message();
  }
  EXPECT_EQ(server.wait(), 0);
  EXPECT_LT(ms_since(start), 8000)
      << "500 ms to the signal, 500 to drain, 2000 for the last messages, 200 to close";
}

TEST(Lifecycle, TakesTextsWhileRequestsRunAndNoneAfterThem) {
  ServerProcess server({"drain-ms=30000", "text-ms=6000"});
  const std::string address = address_of(server.read_line());
  const auto stub = v1::GenerationService::NewStub(connect(address));
  grpc::ClientContext context;
  v1::GenerateRequest ids;
  ids.mutable_token_ids()->add_ids(7);
  ids.mutable_sampling()->set_max_tokens(300);
  const auto reader = stub->Generate(&context, ids);
  v1::GenerateResponse message;
  ASSERT_TRUE(reader->Read(&message));
  server.send(SIGTERM);
  const auto tokenize = [&stub] {
    grpc::ClientContext text_context;
    v1::TokenizeRequest request;
    request.set_text("hello");
    v1::TokenizeResponse response;
    return stub->Tokenize(&text_context, request, &response);
  };
  grpc::Status taken;
  std::thread during([&] { taken = tokenize(); });  // it goes on when the stream has ended
  while (reader->Read(&message)) {
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  const grpc::Status late = tokenize();
  during.join();
  EXPECT_TRUE(taken.ok()) << taken.error_message();
  EXPECT_EQ(late.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(server.wait(), 0);
}

TEST(Lifecycle, DrainsAtAHangup) {
  ServerProcess server({"drain-ms=30000"});
  const auto stub = v1::GenerationService::NewStub(connect(address_of(server.read_line())));
  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, text_request("hello", 300));
  v1::GenerateResponse message;
  ASSERT_TRUE(reader->Read(&message));
  server.send(SIGHUP);
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  server.send(SIGHUP);  // of the same hangup, from the shell
  int messages = 1;
  while (reader->Read(&message)) ++messages;
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(messages, 300);
  EXPECT_EQ(server.wait(), 0);
}

TEST(Lifecycle, OutlivesAHangupThatItWasToldToIgnore) {
  const auto before = signal(SIGHUP, SIG_IGN);  // as nohup does; the child inherits it
  ServerProcess server({});
  signal(SIGHUP, before);
  const std::string address = address_of(server.read_line());
  server.send(SIGHUP);
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_EQ(health_of(address, kServiceName), "SERVING");
  server.send(SIGTERM);
  EXPECT_EQ(server.wait(), 0);
}

// A card that hangs: nobody who runs can be ended either.
TEST(Lifecycle, EndsAfterTheDrainTimeoutWhereNoStepEnds) {
  ServerProcess server({"drain-ms=1500", "step-us=60000000", "step-age-ms=5000"});
  const auto stub = v1::GenerationService::NewStub(connect(address_of(server.read_line())));
  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, text_request("hello", 5));
  const auto submitted = [&stub] {
    grpc::ClientContext load_context;
    v1::GetLoadResponse load;
    return stub->GetLoad(&load_context, {}, &load).ok() && load.requests_submitted_total() > 0;
  };
  while (!submitted()) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  const auto start = Clock::now();
  server.send(SIGTERM);
  EXPECT_EQ(server.wait(), 1);
  EXPECT_GE(ms_since(start), 1400);
  EXPECT_LT(ms_since(start), 6000);
  context.TryCancel();
}

TEST(Lifecycle, EndsAtOnceAtASecondSignal) {
  ServerProcess server({});
  const auto stub = v1::GenerationService::NewStub(connect(address_of(server.read_line())));
  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, text_request("hello", 1'000'000));
  v1::GenerateResponse message;
  ASSERT_TRUE(reader->Read(&message));
  const auto start = Clock::now();
  server.send(SIGTERM);
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  server.send(SIGINT);
  EXPECT_EQ(server.wait(), 128 + SIGINT);
  EXPECT_LT(ms_since(start), 1500);
  context.TryCancel();
}

// A disk that does not return from a write.
TEST(Lifecycle, EndsThoughTheEngineDoesNotClose) {
  ServerProcess server({"close-ms=60000"});
  ASSERT_TRUE(server.read_line().starts_with("READY"));
  const auto start = Clock::now();
  server.send(SIGTERM);
  EXPECT_EQ(server.wait(), 1);
  EXPECT_GE(ms_since(start), 10'000) << "copies that are under way have time";
  EXPECT_LT(ms_since(start), 20'000);
}

// An engine with a disk tier ends its copies first, which a slow disk makes long.
TEST(Lifecycle, EndsAtOnceAtASecondSignalWhileTheEngineCloses) {
  ServerProcess server({"close-ms=20000"});
  ASSERT_TRUE(server.read_line().starts_with("READY"));
  server.send(SIGTERM);
  std::this_thread::sleep_for(std::chrono::milliseconds(1500));  // nobody is to be drained
  const auto start = Clock::now();
  server.send(SIGINT);
  EXPECT_EQ(server.wait(), 128 + SIGINT);
  EXPECT_LT(ms_since(start), 5000);
}

TEST(Lifecycle, IsLiveAndNotReadyWhileTheModelLoads) {
  const std::string port = std::to_string(20000 + getpid() % 10000);
  ServerProcess server({"port=" + port, "load-ms=1500"});
  const std::string address = "127.0.0.1:" + port;
  EXPECT_EQ(health_of(address, ""), "SERVING");
  EXPECT_EQ(health_of(address, kServiceName), "NOT_SERVING");
  const auto stub = v1::GenerationService::NewStub(connect(address));
  EXPECT_EQ(run_stream(*stub, text_request("hello", 1)).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(server.read_line().starts_with("READY"));
  EXPECT_EQ(health_of(address, kServiceName), "SERVING");
}

TEST(Lifecycle, EndsAtOnceAtASignalWhileTheModelLoads) {
  ServerProcess server({"load-ms=20000"});
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  server.send(SIGTERM);
  EXPECT_EQ(server.wait(), 128 + SIGTERM);
}

TEST(Lifecycle, IsNotReadyWhileTheEngineIsWedged) {
  ServerProcess server({"step-age-ms=5000"});
  const std::string address = address_of(server.read_line());
  const auto stub = v1::GenerationService::NewStub(connect(address));
  std::this_thread::sleep_for(std::chrono::milliseconds(1300));
  EXPECT_EQ(health_of(address, kServiceName), "SERVING") << "an idle engine makes no steps";
  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, text_request("hello", 1'000'000));
  std::this_thread::sleep_for(std::chrono::milliseconds(1300));
  EXPECT_EQ(health_of(address, kServiceName), "NOT_SERVING");
  context.TryCancel();
  v1::GenerateResponse message;
  while (reader->Read(&message)) {
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(1300));
  EXPECT_EQ(health_of(address, kServiceName), "SERVING") << "it recovers";
}

// To a full disk.
TEST(Lifecycle, FailsWhereNobodyCanReadTheReadyLine) {
  const std::string command = "timeout 20 /proc/" + std::to_string(getpid()) + "/exe --serve 2>&1 >/dev/full";
  std::FILE* const errors = popen(command.c_str(), "r");
  char line[256] = "";
  EXPECT_NE(std::fgets(line, sizeof line, errors), nullptr);
  const int status = pclose(errors);
  EXPECT_EQ(WEXITSTATUS(status), 1);
  EXPECT_STREQ(line, "standard output, for the READY line: No space left on device\n");
}

TEST(Lifecycle, WritesAModelsNameAsOneWord) {
  ServerProcess server({"spaced-name=1"});
  const std::string line = server.read_line();
  EXPECT_TRUE(line.ends_with(" model=\"sp ace \\\"d\\\"\"\n")) << line;
}

TEST(Lifecycle, FailsWithoutAReadyLineWhenTheModelDoesNotOpen) {
  ServerProcess server({"broken=1"});
  EXPECT_EQ(server.read_line(), "");
  EXPECT_EQ(server.wait(), 1);
}

TEST(Lifecycle, NamesTheLimitThatIsOutOfRange) {
  for (const auto& [change, message] :
       std::vector<std::pair<std::function<void(ServeOptions&)>, std::string>>{
           {[](ServeOptions& o) { o.service.texts.threads = -1; },
            "--text-threads is -1; it must be from 0 to 1024"},
           {[](ServeOptions& o) { o.service.texts.max_queued = 0; },
            "--max-queued-texts is 0; it must be from 1 to 2147483647"},
           {[](ServeOptions& o) { o.listen.max_message_bytes = int64_t{1} << 31; },
            "--max-message-bytes is 2147483648; it must be from 1024 to 2147483647"}}) {
    ServeOptions options;
    options.listen.port = 0;
    change(options);
    const Status served = serve(
        options,
        []() -> Result<std::unique_ptr<Engine>> {
          return error(Code::kInternal, "it must not come to this");
        },
        [](const Engine&) { return int64_t{0}; });
    ASSERT_FALSE(served.has_value());
    EXPECT_EQ(served.error().message, message);
  }
}

}  // namespace
}  // namespace quire::server

int main(int argc, char** argv) {
  if (argc > 1 && std::string(argv[1]) == "--serve") {
    std::map<std::string, int64_t> options;
    for (int i = 2; i < argc; ++i) {
      const std::string word = argv[i];
      options[word.substr(0, word.find('='))] = std::stoll(word.substr(word.find('=') + 1));
    }
    return quire::server::serve_fake(options);
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
