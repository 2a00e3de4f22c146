#include "tests/fuzz/fuzz_target.h"

#include <filesystem>
#include <vector>

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  static std::string seeds = std::string(QUIRE_SOURCE_DIR "/tests/fuzz/corpus/") + quire::fuzz::kCorpus;
  static std::vector<char*> arguments(*argv, *argv + *argc);
  // Only after a corpus directory: found inputs go to the first one named, and single files are run as they are.
  bool has_directory = false;
  for (size_t i = 1; i < arguments.size(); ++i) has_directory |= std::filesystem::is_directory(arguments[i]);
  if (has_directory) arguments.push_back(seeds.data());
  arguments.push_back(nullptr);
  *argc = static_cast<int>(arguments.size()) - 1;
  *argv = arguments.data();
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  quire::fuzz::fuzz_one({reinterpret_cast<const char*>(data), size});
  return 0;
}
