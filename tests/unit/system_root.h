// A folder that stands for the root of the file system, where what the system says of itself is read.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace quire {

struct SystemRoot {
  SystemRoot() { std::filesystem::remove_all(path); }
  ~SystemRoot() { std::filesystem::remove_all(path); }
  void write(const std::string& file, const std::string& text) const {
    std::filesystem::create_directories(std::filesystem::path(path + file).parent_path());
    std::ofstream(path + file) << text;
  }
  const std::string path = testing::TempDir() + "/quire_root_" + std::to_string(getpid());
};

}  // namespace quire
