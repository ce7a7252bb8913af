// The processes of a run with several ranks, which one process starts, listens to and ends together.
#pragma once

#include <cstdio>
#include <functional>
#include <string>
#include <vector>

namespace luthier {

// Exit code of a rank that ends because another one is gone: not what the run failed by.
inline constexpr int kLostRankExitCode = 3;

// Runs `ranks` processes of this program with arguments_of(rank, descriptor of the rendezvous) and waits for their end.
// What rank 0 says on standard output goes to `output`, line by line; it also has standard input, and SIGTERM and
// SIGINT reach it as SIGTERM. When it has ended, or any other has ended badly, the rest is killed; none outlives this
// process either. The caller has one thread and is about to end.
// Returns what this process should exit with. If a rank was killed, it kills this process by the same signal: who
// started it sees what happened.
int RunRanks(int ranks, const std::function<std::vector<std::string>(int rank, int rendezvous)>& arguments_of,
             std::FILE* output);

}  // namespace luthier
