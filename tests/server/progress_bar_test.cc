// Progress from a work to its line on a terminal. Method: a moved clock, and a terminal that is memory.
#include "server/progress_bar.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

namespace quire::server {
namespace {

class Terminal {
 public:
  Terminal() : file_(open_memstream(&text_, &bytes_)) {}
  ~Terminal() {
    std::fclose(file_);
    std::free(text_);
  }
  std::FILE* file() { return file_; }
  std::string take() {
    std::fflush(file_);
    std::string all(text_, bytes_);
    std::string fresh = all.substr(taken_);
    taken_ = all.size();
    return fresh;
  }

 private:
  char* text_ = nullptr;
  size_t bytes_ = 0, taken_ = 0;
  std::FILE* file_;
};

struct Observed {
  Observed() {
    set_progress_observer([this](const ProgressReport& r) { bar.on_report(r); });
  }
  ~Observed() { set_progress_observer({}); }
  ManualClock clock;
  Terminal terminal;
  ProgressBar bar{terminal.file(), clock};
};

TEST(ProgressBar, ShowsNothingOfAShortWork) {
  Observed o;
  Progress work("reading weights", 10, "bytes");
  for (int i = 0; i < 10; ++i) o.clock.advance_us(90'000), work.advance();
  EXPECT_EQ(o.terminal.take(), "");
}

TEST(ProgressBar, DrawsALongWorkInPlaceAndWipesItAtTheEnd) {
  Observed o;
  Progress work("reading weights", 4'000'000'000, "bytes");
  o.clock.advance_us(2'000'000);
  work.advance(1'000'000'000);
  EXPECT_EQ(o.terminal.take(),
            "\rreading weights    [#####...............]  25 %  1.0 of 4.0 GB, 2 s, 6 s left\033[K");
  work.advance(1'000'000'000);  // within a tenth of a second
  EXPECT_EQ(o.terminal.take(), "");
  work.advance(2'000'000'000);
  EXPECT_EQ(o.terminal.take(), "\r\033[K");
}

TEST(ProgressBar, WipesTheLineOfAWorkThatEndsEarly) {
  Observed o;
  {
    Progress work("generating", 9, "requests");
    o.clock.advance_us(3'000'000);
    work.advance(3);
    EXPECT_EQ(o.terminal.take(),
              "\rgenerating         [######..............]  33 %  3 of 9 requests, 3 s, 6 s left\033[K");
  }
  EXPECT_EQ(o.terminal.take(), "\r\033[K");
}

TEST(ProgressBar, CountsEachWorkFromItsOwnStart) {
  Observed o;
  {
    Progress first("one", 1, "rounds");
  }
  o.clock.advance_us(5'000'000);
  Progress second("two", 2, "rounds");
  o.clock.advance_us(500'000);
  second.advance();
  EXPECT_EQ(o.terminal.take(), "");
}

TEST(Progress, WithoutAnObserverGoesNowhereAndNeverPastItsTotal) {
  std::vector<int64_t> seen;
  Progress silent("unseen", 2, "rounds");
  set_progress_observer([&](const ProgressReport& r) { seen.push_back(r.done); });
  silent.advance(5);
  silent.advance();
  set_progress_observer({});
  EXPECT_EQ(seen, (std::vector<int64_t>{2, 2}));
}

}  // namespace
}  // namespace quire::server
