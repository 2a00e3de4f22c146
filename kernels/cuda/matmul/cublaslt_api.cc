#include "kernels/cuda/matmul/cublaslt_api.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <filesystem>
#include <string>
#include <vector>

namespace quire::cublaslt {
namespace {

constexpr const char* kLibrary = "libcublasLt.so.13";

std::vector<std::string> candidates() {
  std::vector<std::string> paths;
  std::error_code none;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", none);
  if (!none) {
    paths.push_back((program.parent_path() / ".." / "lib" / kLibrary).string());
    paths.push_back((program.parent_path() / kLibrary).string());
  }
  paths.push_back(std::string("/usr/local/cuda/lib64/") + kLibrary);
  paths.push_back(kLibrary);
  return paths;
}

template <class F>
bool find(void* library, const char* name, F& function, std::string& missing) {
  function = reinterpret_cast<F>(dlsym(library, name));
  if (function == nullptr) missing = name;
  return function != nullptr;
}

bool find_all(void* library, Api& api, std::string& missing) {
  return find(library, "cublasLtGetVersion", api.get_version, missing) &&
         find(library, "cublasLtCreate", api.create, missing) &&
         find(library, "cublasLtDestroy", api.destroy, missing) &&
         find(library, "cublasLtMatmulDescCreate", api.desc_create, missing) &&
         find(library, "cublasLtMatmulDescDestroy", api.desc_destroy, missing) &&
         find(library, "cublasLtMatmulDescSetAttribute", api.desc_set, missing) &&
         find(library, "cublasLtMatrixLayoutCreate", api.layout_create, missing) &&
         find(library, "cublasLtMatrixLayoutDestroy", api.layout_destroy, missing) &&
         find(library, "cublasLtMatmulPreferenceCreate", api.preference_create, missing) &&
         find(library, "cublasLtMatmulPreferenceDestroy", api.preference_destroy, missing) &&
         find(library, "cublasLtMatmulPreferenceSetAttribute", api.preference_set, missing) &&
         find(library, "cublasLtMatmulAlgoGetHeuristic", api.get_heuristic, missing) &&
         find(library, "cublasLtMatmulAlgoCheck", api.algo_check, missing) &&
         find(library, "cublasLtMatmul", api.matmul, missing);
}

}  // namespace

Result<Api> load() {
  std::string why;
  for (const std::string& path : candidates()) {
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      why = dlerror();
      continue;
    }
    Api api{};
    std::string missing;
    if (find_all(library, api, missing)) return api;
    why = fmt::format("{} has no {}", path, missing);
    dlclose(library);
  }
  return error(Code::kUnavailable, fmt::format("cuBLASLt cannot be opened: {}", why));
}

}  // namespace quire::cublaslt
