// What cgroups leave a process, read of a folder that stands for the root of the file system.
#include "src/base/cgroup_limit.h"

#include <gtest/gtest.h>

#include "tests/unit/system_root.h"

namespace quire {
namespace {

constexpr int64_t kMachine = 1'000'000;

TEST(CgroupMemoryLeft, IsTheMachinesWithoutALimit) {
  const SystemRoot root;
  EXPECT_EQ(least_cgroup_memory_left(kMachine, root.path), kMachine);
  root.write("/proc/self/cgroup", "0::/pod\n");
  root.write("/sys/fs/cgroup/pod/memory.max", "max\n");
  root.write("/sys/fs/cgroup/pod/memory.current", "400000\n");
  EXPECT_EQ(least_cgroup_memory_left(kMachine, root.path), kMachine);
}

TEST(CgroupMemoryLeft, IsTheLimitLessWhatIsHeldBesidePageCache) {
  const SystemRoot root;
  root.write("/proc/self/cgroup", "0::/pod/container\n");
  root.write("/sys/fs/cgroup/pod/container/memory.max", "500000\n");
  EXPECT_EQ(least_cgroup_memory_left(kMachine, root.path), 500'000);
  root.write("/sys/fs/cgroup/pod/container/memory.current", "200000\n");
  EXPECT_EQ(least_cgroup_memory_left(kMachine, root.path), 300'000);
  root.write("/sys/fs/cgroup/pod/container/memory.stat",
             "anon 50000\nfile 150000\nshmem 30000\ninactive_file 100000\nactive_file 20000\n");
  EXPECT_EQ(least_cgroup_memory_left(kMachine, root.path), 420'000) << "page cache is given back";
  root.write("/sys/fs/cgroup/pod/memory.max", "600000\n");
  root.write("/sys/fs/cgroup/pod/memory.current", "590000\n");
  EXPECT_EQ(least_cgroup_memory_left(kMachine, root.path), 10'000) << "its siblings hold what it might";
  root.write("/sys/fs/cgroup/pod/memory.current", "610000\n");
  EXPECT_EQ(least_cgroup_memory_left(kMachine, root.path), 0);
}

TEST(CgroupMemoryLeft, IsReadOfTheFirstVersionToo) {
  const SystemRoot root;
  root.write("/proc/self/cgroup", "4:memory:/docker/0123\n0::/\n");
  const std::string folder = "/sys/fs/cgroup/memory/docker/0123";
  root.write(folder + "/memory.limit_in_bytes", "500000\n");
  root.write(folder + "/memory.usage_in_bytes", "200000\n");
  root.write(folder + "/memory.stat",
             "inactive_file 1\nactive_file 2\ntotal_inactive_file 40000\ntotal_active_file 10000\n");
  EXPECT_EQ(least_cgroup_memory_left(kMachine, root.path), 350'000);
}

TEST(CgroupCores, AreTheLeastQuotaOfACgroupAndThoseAboveIt) {
  const SystemRoot root;
  EXPECT_EQ(least_cgroup_cores(16, root.path), 16);
  root.write("/proc/self/cgroup", "2:cpu,cpuacct:/slice/unit\n0::/pod/container\n");
  root.write("/sys/fs/cgroup/pod/container/cpu.max", "max 100000\n");
  EXPECT_EQ(least_cgroup_cores(16, root.path), 16);
  root.write("/sys/fs/cgroup/pod/cpu.max", "450000 100000\n");
  EXPECT_EQ(least_cgroup_cores(16, root.path), 4.5);
  root.write("/sys/fs/cgroup/cpu/slice/unit/cpu.cfs_quota_us", "-1\n");
  root.write("/sys/fs/cgroup/cpu/slice/unit/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(least_cgroup_cores(16, root.path), 4.5) << "-1 is no quota";
  root.write("/sys/fs/cgroup/cpu/slice/cpu.cfs_quota_us", "150000\n");
  root.write("/sys/fs/cgroup/cpu/slice/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(least_cgroup_cores(16, root.path), 1.5);
}

}  // namespace
}  // namespace quire
