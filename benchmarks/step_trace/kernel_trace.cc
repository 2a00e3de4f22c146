// A trace of every kernel that a program runs, those of captured graphs one by one, without a change to the program: a library that the
// driver loads (CUDA_INJECTION64_PATH) and that asks CUPTI for its activity records.
// run.py beside this builds and uses it:
//   c++ -std=c++20 -shared -fPIC -o libkernel_trace.so kernel_trace.cc -I CUDA/include -I CUPTI/include CUPTI/lib64/libcupti.so
//   CUDA_INJECTION64_PATH=$PWD/libkernel_trace.so QUIRE_KERNEL_TRACE=trace.csv quire-offline ...
//
// One line a kernel or copy: start and end in ns, blocks, threads of a block, bytes of dynamic shared memory, stream, node and graph (0: of
// none), name. A traced graph runs slower than an untraced one; compare their steps.
#include <cupti.h>
#include <cxxabi.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <unordered_map>

namespace {

std::FILE* out = nullptr;

// "quire::cuda::(anonymous namespace)::decode_attention<...>" without its parameters and namespaces; each name is read once.
const std::string& short_name(const char* mangled) {
  // Never destroyed: the last records come while the process ends, after the statics that were made later than the trace.
  static auto& known = *new std::unordered_map<std::string, std::string>;
  const auto [at, is_new] = known.try_emplace(mangled);
  if (!is_new) return at->second;
  int status = 0;
  char* const plain = abi::__cxa_demangle(mangled, nullptr, nullptr, &status);
  std::string name = plain != nullptr ? plain : mangled;
  std::free(plain);
  for (const char* drop : {"(anonymous namespace)::", "quire::cuda::", "void "})
    for (size_t i = name.find(drop); i != std::string::npos; i = name.find(drop))
      name.erase(i, std::char_traits<char>::length(drop));
  at->second = name.substr(0, name.find('('));
  return at->second;
}

void write_kernel(const CUpti_ActivityKernel10& k) {
  std::fprintf(out, "%llu,%llu,%lld,%d,%d,%u,%llu,%u,\"%s\"\n", static_cast<unsigned long long>(k.start),
               static_cast<unsigned long long>(k.end), static_cast<long long>(k.gridX) * k.gridY * k.gridZ,
               k.blockX * k.blockY * k.blockZ, k.dynamicSharedMemory, k.streamId,
               static_cast<unsigned long long>(k.graphNodeId), k.graphId, short_name(k.name).c_str());
}

void write_copy(const CUpti_ActivityMemcpy6& m) {
  std::fprintf(out, "%llu,%llu,0,0,0,%u,%llu,%u,\"copy of %llu bytes\"\n",
               static_cast<unsigned long long>(m.start), static_cast<unsigned long long>(m.end), m.streamId,
               static_cast<unsigned long long>(m.graphNodeId), m.graphId,
               static_cast<unsigned long long>(m.bytes));
}

void CUPTIAPI give_buffer(uint8_t** buffer, size_t* bytes, size_t* max_records) {
  *bytes = 8 << 20;
  *buffer = static_cast<uint8_t*>(std::aligned_alloc(8, *bytes));
  *max_records = 0;
}

void CUPTIAPI take_buffer(CUcontext, uint32_t, uint8_t* buffer, size_t, size_t valid_bytes) {
  CUpti_Activity* record = nullptr;
  while (cuptiActivityGetNextRecord(buffer, valid_bytes, &record) == CUPTI_SUCCESS) {
    if (record->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL)
      write_kernel(*reinterpret_cast<const CUpti_ActivityKernel10*>(record));
    else if (record->kind == CUPTI_ACTIVITY_KIND_MEMCPY)
      write_copy(*reinterpret_cast<const CUpti_ActivityMemcpy6*>(record));
  }
  std::free(buffer);
}

bool worked(const char* what, CUptiResult result) {
  const char* text = "unknown";
  if (result != CUPTI_SUCCESS) {
    cuptiGetResultString(result, &text);
    std::fprintf(stderr, "kernel trace: %s: %s\n", what, text);
  }
  return result == CUPTI_SUCCESS;
}

void end_trace() {
  worked("flush", cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED));
  size_t lost = 0;
  if (cuptiActivityGetNumDroppedRecords(nullptr, 0, &lost) == CUPTI_SUCCESS && lost > 0)
    std::fprintf(stderr, "kernel trace: %zu records were lost\n", lost);
  std::fclose(out);
}

}  // namespace

// What the driver calls.
extern "C" __attribute__((visibility("default"))) int InitializeInjection() {
  const char* path = std::getenv("QUIRE_KERNEL_TRACE");
  if (path == nullptr) return 1;
  out = std::fopen(path, "w");
  if (out == nullptr) {
    std::fprintf(stderr, "kernel trace: %s cannot be written\n", path);
    return 1;
  }
  std::fprintf(out, "start_ns,end_ns,blocks,threads,shared_bytes,stream,node,graph,name\n");
  if (worked("callbacks", cuptiActivityRegisterCallbacks(give_buffer, take_buffer)) &&
      worked("kernels", cuptiActivityEnable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL)) &&
      worked("copies", cuptiActivityEnable(CUPTI_ACTIVITY_KIND_MEMCPY)))
    std::fprintf(stderr, "kernel trace: to %s\n", path);
  std::atexit(end_trace);
  return 1;
}
