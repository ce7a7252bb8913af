// The real luthierd, on free ports and a folder of the test's own, ended with the test.
#pragma once

#include <arpa/inet.h>
#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace luthier {

class Luthierd {
 public:
  // Starts `program` with `arguments` (and "NAME=VALUE" in `environment`) and waits until it serves or has ended.
  explicit Luthierd(const std::string& program, std::vector<std::string> arguments,
                    std::vector<std::string> environment = {}) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) std::abort();
    arguments.insert(arguments.begin(), program);
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    pid_ = fork();
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      for (std::string& variable : environment) putenv(variable.data());
      dup2(ends[1], STDERR_FILENO);
      execv(argv[0], argv.data());
      _exit(127);
    }
    close(ends[1]);
    log_end_ = ends[0];
    fcntl(log_end_, F_SETFL, O_NONBLOCK);
    reader_ = std::thread([this] { ReadLog(); });
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (!Serves() && !log_ended() && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    if (!Serves()) return;
    // A channel of its own: a shared one would still be backing off from the server before.
    grpc::ChannelArguments own;
    own.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    channel_ = grpc::CreateCustomChannel(address(), grpc::InsecureChannelCredentials(), own);
  }
  ~Luthierd() {
    if (pid_ > 0) End(SIGKILL);
    reader_.join();
    close(log_end_);
  }

  bool Serves() { return log().find(" serves on ") != std::string::npos; }
  std::string address() { return After(" serves on "); }
  std::string metrics_address() { return After("metrics on http://"); }
  const std::shared_ptr<grpc::Channel>& channel() { return channel_; }
  pid_t pid() const { return pid_; }

  void Signal(int signal) { kill(pid_, signal); }
  // Sends the signal and waits for the end: the exit code, or minus the signal that ended it. -1000 if it does not end
  // in time.
  int End(int signal, std::chrono::seconds deadline = std::chrono::seconds(30)) {
    kill(pid_, signal);
    return Wait(deadline);
  }
  int Wait(std::chrono::seconds deadline = std::chrono::seconds(30)) {
    const auto end = std::chrono::steady_clock::now() + deadline;
    int status = 0;
    while (waitpid(pid_, &status, WNOHANG) != pid_) {
      if (std::chrono::steady_clock::now() > end) return -1000;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    pid_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

  // All that it has written until now, also what the reader has not come to.
  std::string log() {
    const std::lock_guard lock(mutex_);
    TakeLog();
    return log_;
  }
  // The most memory that it has ever had.
  int64_t PeakBytes() const {
    std::ifstream stream("/proc/" + std::to_string(pid_) + "/status");
    for (std::string word; stream >> word;) {
      int64_t kilobytes = 0;
      if (word == "VmHWM:" && stream >> kilobytes) return kilobytes << 10;
    }
    return 0;
  }
  // What it has now.
  int64_t ResidentBytes() const {
    std::ifstream stream("/proc/" + std::to_string(pid_) + "/statm");
    int64_t pages = 0;
    stream >> pages >> pages;
    return pages * sysconf(_SC_PAGESIZE);
  }
  // Processor time that it has spent: fields 14 and 15 of its stat, of which the second, its name, may have spaces.
  double CpuSeconds() const {
    std::ifstream stream("/proc/" + std::to_string(pid_) + "/stat");
    const std::string text((std::istreambuf_iterator<char>(stream)), {});
    std::istringstream fields(text.substr(text.rfind(')') + 2));
    const std::vector<std::string> values{std::istream_iterator<std::string>(fields), {}};
    return (std::stod(values.at(11)) + std::stod(values.at(12))) / static_cast<double>(sysconf(_SC_CLK_TCK));
  }
  // What /metrics answers, headers included.
  std::string Metrics() {
    const std::string address = metrics_address();
    const size_t colon = address.rfind(':');
    sockaddr_in where = {};
    where.sin_family = AF_INET;
    where.sin_port = htons(static_cast<uint16_t>(std::stoi(address.substr(colon + 1))));
    inet_pton(AF_INET, address.substr(0, colon).c_str(), &where.sin_addr);
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    std::string answer;
    const std::string request = "GET /metrics HTTP/1.0\r\n\r\n";
    if (connect(fd, reinterpret_cast<sockaddr*>(&where), sizeof where) == 0 &&
        write(fd, request.data(), request.size()) == static_cast<ssize_t>(request.size())) {
      char buffer[4096];
      for (ssize_t count; (count = read(fd, buffer, sizeof buffer)) > 0;)
        answer.append(buffer, static_cast<size_t>(count));
    }
    close(fd);
    return answer;
  }

 private:
  // Keeps the pipe from filling up while nobody asks for the log.
  void ReadLog() {
    pollfd written = {log_end_, POLLIN, 0};
    while (!log_ended() && poll(&written, 1, -1) == 1) log();
  }
  void TakeLog() {
    char buffer[4096];
    ssize_t count = 0;
    while ((count = read(log_end_, buffer, sizeof buffer)) > 0) log_.append(buffer, static_cast<size_t>(count));
    if (count == 0) log_ended_ = true;
  }
  bool log_ended() {
    const std::lock_guard lock(mutex_);
    return log_ended_;
  }
  std::string After(const std::string& text) {
    const std::string all = log();
    const size_t begin = all.find(text) + text.size();
    return all.substr(begin, all.find_first_of(",/ \n", begin) - begin);
  }

  pid_t pid_ = 0;
  int log_end_ = -1;  // of the pipe
  std::mutex mutex_;
  std::string log_;
  bool log_ended_ = false;
  std::thread reader_;
  std::shared_ptr<grpc::Channel> channel_;
};

}  // namespace luthier
