// Runs a plan over kernels that TVM compiled, without TVM: ./run FOLDER THREADS SAMPLES INPUTS OUTPUTS
// FOLDER holds plan.txt and weights.bin. One run writes OUTPUTS; SAMPLES more are timed, and a line of JSON goes to standard output.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <mutex>
#include <sstream>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

// The parts of DLPack and of TVM's calling convention that compiled kernels see (apache-tvm-ffi 0.1, 32 and 64 bit).
struct DataType { uint8_t code, bits; uint16_t lanes; };
struct Array { void* data; int32_t device_type, device_id, ndim; DataType dtype; int64_t* shape; int64_t* strides; uint64_t byte_offset; };
struct Argument { int32_t type_index; uint32_t padding; union { int64_t number; void* pointer; }; };
static_assert(sizeof(Argument) == 16 && offsetof(Argument, number) == 8, "arguments are 16 bytes");
static_assert(sizeof(Array) == (sizeof(void*) == 8 ? 48 : 40), "DLTensor");
constexpr int32_t kArray = 7, kCpu = 1;
using Kernel = int (*)(void*, const Argument*, int32_t, Argument*);
struct Group { void* sync; int32_t tasks; };
using Task = int (*)(int, Group*, void*);

// Kernels enter themselves here before main.
struct Entry { const char* name; void* function; };
static Entry table[8192];
static int entries = 0;

// The calling thread is worker 0.
class Pool {
 public:
  explicit Pool(int count) {
    for (int id = 1; id < count; ++id) threads_.emplace_back([this, id] { Work(id); });
  }
  ~Pool() {
    { std::lock_guard<std::mutex> lock(mutex_); stop_ = true; }
    go_.notify_all();
    for (auto& thread : threads_) thread.join();
  }
  int Run(Task task, void* data) {
    if (threads_.empty()) { Group one{nullptr, 1}; return task(0, &one, data); }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      task_ = task; data_ = data; group_.tasks = int(threads_.size()) + 1; left_ = int(threads_.size()); failed_ = 0; ++round_;
    }
    go_.notify_all();
    int mine = task(0, &group_, data);
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return left_ == 0; });
    return mine ? mine : failed_;
  }

 private:
  void Work(int id) {
    unsigned seen = 0;
    for (;;) {
      std::unique_lock<std::mutex> lock(mutex_);
      go_.wait(lock, [&] { return stop_ || round_ != seen; });
      if (stop_) return;
      seen = round_;
      Task task = task_; void* data = data_;
      lock.unlock();
      int code = task(id, &group_, data);
      lock.lock();
      if (code) failed_ = code;
      if (--left_ == 0) done_.notify_one();
    }
  }
  std::mutex mutex_;
  std::condition_variable go_, done_;
  std::vector<std::thread> threads_;
  Task task_ = nullptr;
  void* data_ = nullptr;
  Group group_{nullptr, 1};
  int left_ = 0, failed_ = 0;
  unsigned round_ = 0;
  bool stop_ = false;
};
static Pool* pool = nullptr;

extern "C" {
int TVMFFIEnvModRegisterSystemLibSymbol(const char* name, void* function) {
  if (entries == int(sizeof(table) / sizeof(table[0]))) abort();
  table[entries++] = {name, function};
  return 0;
}
void TVMFFIErrorSetRaisedFromCStrParts(const char* kind, const char** parts, int32_t count) {
  fprintf(stderr, "%s: ", kind);
  for (int i = 0; i < count; ++i) if (parts[i]) fputs(parts[i], stderr);
  fputc('\n', stderr);
}
void* TVMBackendAllocWorkspace(int, int, uint64_t bytes, int, int) {
  void* place = nullptr;
  return posix_memalign(&place, 64, size_t(bytes)) ? nullptr : place;
}
int TVMBackendFreeWorkspace(int, int, void* place) { free(place); return 0; }
int TVMBackendParallelLaunch(Task task, void* data, int) { return pool->Run(task, data); }
}

static void Fail(const std::string& why) { fprintf(stderr, "%s\n", why.c_str()); exit(3); }

static char* Map(const std::string& path, uint64_t wanted) {
  int file = open(path.c_str(), O_RDONLY);
  struct stat info;
  if (file < 0 || fstat(file, &info)) Fail("cannot open " + path);
  if (uint64_t(info.st_size) < wanted) Fail(path + " is shorter than the plan says");
  if (wanted > SIZE_MAX / 2) Fail("the plan is too large for this processor");
  if (!wanted) return nullptr;
  void* place = mmap(nullptr, size_t(info.st_size), PROT_READ, MAP_PRIVATE, file, 0);
  if (place == MAP_FAILED) Fail("cannot map " + path);
  return static_cast<char*>(place);
}

static char* Room(uint64_t bytes) {
  if (bytes > SIZE_MAX / 2) Fail("the plan is too large for this processor");
  void* place = nullptr;
  if (posix_memalign(&place, 64, size_t(bytes ? bytes : 64))) Fail("out of memory");
  return static_cast<char*>(place);
}

static double Seconds(clockid_t clock) { timespec t; clock_gettime(clock, &t); return double(t.tv_sec) + 1e-9 * double(t.tv_nsec); }

static long Number(const char* text) { char* end = nullptr; const long found = strtol(text, &end, 10); return *text && !*end ? found : -1; }

struct Call { Kernel kernel; std::vector<Argument> arguments; std::string name; };

int main(int argc, char** argv) {
  if (argc != 6) { fputs("usage: run FOLDER THREADS SAMPLES INPUTS OUTPUTS\n", stderr); return 2; }
  const std::string folder = argv[1];
  const long threads = Number(argv[2]), samples = Number(argv[3]);
  if (threads < 1 || threads > 1024 || samples < 0 || samples > 1000000000) { fputs("THREADS must be 1 to 1024, SAMPLES at least 0\n", stderr); return 2; }
  std::ifstream plan(folder + "/plan.txt");
  std::string line, op;
  uint64_t weight_bytes, input_bytes, output_bytes, arena_bytes;
  size_t tensor_count, call_count;
  if (!std::getline(plan, line)) Fail("cannot read " + folder + "/plan.txt");
  { std::istringstream in(line); if (!(in >> op >> weight_bytes >> input_bytes >> output_bytes >> arena_bytes >> tensor_count >> call_count) || op != "s") Fail("plan.txt does not begin with its sizes"); }
  char* weights = Map(folder + "/weights.bin", weight_bytes);
  char* inputs = Map(argv[4], input_bytes);
  char* outputs = Room(output_bytes);
  memset(outputs, 0, size_t(output_bytes));
  char* arena = Room(arena_bytes);
  std::vector<Array> arrays;
  std::vector<bool> writable;
  std::vector<Call> calls;
  while (std::getline(plan, line)) {
    std::istringstream in(line);
    in >> op;
    if (op == "t") {
      int code, bits; char place; uint64_t offset;
      if (!(in >> code >> bits >> place >> offset)) Fail("plan.txt: " + line);
      auto* shape = new std::vector<int64_t>;
      int64_t size; uint64_t bytes = uint64_t(bits) / 8;
      while (in >> size) {
        if (size < 0 || __builtin_mul_overflow(bytes, uint64_t(size), &bytes)) Fail("plan.txt: " + line);
        shape->push_back(size);
      }
      const uint64_t limit = place == 'w' ? weight_bytes : place == 'i' ? input_bytes : place == 'o' ? output_bytes : arena_bytes;
      if (offset % 64 || offset > limit || bytes > limit - offset) Fail("plan.txt: a tensor outside of its file: " + line);
      char* base = place == 'w' ? weights : place == 'i' ? inputs : place == 'o' ? outputs : arena;
      writable.push_back(place == 'o' || place == 'a');
      arrays.push_back({base + offset, kCpu, 0, int32_t(shape->size()), {uint8_t(code), uint8_t(bits), 1}, shape->data(), nullptr, 0});
    } else if (op == "c") {
      Call call{nullptr, {}, ""};
      in >> call.name;
      const std::string symbol = "__tvm_ffi_" + call.name;
      for (int i = 0; i < entries; ++i) if (symbol == table[i].name) call.kernel = reinterpret_cast<Kernel>(table[i].function);
      if (!call.kernel) Fail("no kernel " + call.name);
      size_t index;
      while (in >> index) {
        if (index >= arrays.size()) Fail("plan.txt: " + line);
        Argument argument{kArray, 0, {0}};
        argument.pointer = reinterpret_cast<void*>(index);
        call.arguments.push_back(argument);
      }
      if (call.arguments.empty() || !writable[reinterpret_cast<size_t>(call.arguments.back().pointer)]) Fail("plan.txt: a result that cannot be written: " + line);
      calls.push_back(call);
    }
  }
  if (arrays.size() != tensor_count || calls.size() != call_count) Fail("plan.txt is cut short");
  for (auto& call : calls) for (auto& argument : call.arguments) argument.pointer = &arrays[reinterpret_cast<size_t>(argument.pointer)];
  try { pool = new Pool(int(threads)); } catch (const std::system_error&) { Fail("this system gives no " + std::to_string(threads) + " threads"); }
  auto once = [&] {
    for (auto& call : calls) {
      Argument result{0, 0, {0}};
      if (call.kernel(nullptr, call.arguments.data(), int32_t(call.arguments.size()), &result)) Fail("kernel " + call.name + " failed");
    }
  };
  once();
  FILE* file = fopen(argv[5], "wb");
  if (!file || fwrite(outputs, 1, size_t(output_bytes), file) != output_bytes || fclose(file)) Fail(std::string("cannot write ") + argv[5]);
  for (long i = 0; i < (samples ? 5 : 0); ++i) once();
  std::string wall, cpu;
  for (long i = 0; i < samples; ++i) {
    const double w = Seconds(CLOCK_MONOTONIC), c = Seconds(CLOCK_PROCESS_CPUTIME_ID);
    once();
    char text[64];
    snprintf(text, sizeof text, "%s%.6f", i ? "," : "", 1e3 * (Seconds(CLOCK_MONOTONIC) - w)); wall += text;
    snprintf(text, sizeof text, "%s%.6f", i ? "," : "", 1e3 * (Seconds(CLOCK_PROCESS_CPUTIME_ID) - c)); cpu += text;
  }
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  printf("{\"threads\": %ld, \"peak_memory_mb\": %.3f, \"wall_ms\": [%s], \"cpu_ms\": [%s]}\n", threads, double(usage.ru_maxrss) / 1e3, wall.c_str(), cpu.c_str());
  delete pool;
  return 0;
}
