// Linked into what uses tile registers: Linux gives them to a process that asks. Loading the library asks.
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {
constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)

__attribute__((constructor)) void ask() {
  if (syscall(SYS_arch_prctl, REQUEST, TILE_DATA)) perror("no tile registers for this process, which its kernels need");
}
}  // namespace
