// The processes of a run with several ranks, which one process starts, listens to and ends together.
#pragma once

#include <cstdio>
#include <functional>
#include <string>
#include <vector>

namespace luthier {

// The ranks of a run that this process starts.
struct LocalRanks {
  int first = 0;
  int count = 1;
  int of = 1;  // as many as all nodes together have

  bool lead() const { return first == 0; }
  bool are_all() const { return count == of; }
};

// Runs processes of this program with arguments_of(rank) and waits for their end. What rank 0 says on standard output
// goes to `output`, line by line; it also has standard input, and SIGTERM and SIGINT reach it as SIGTERM. When it has
// ended, or any other has ended badly, the rest is killed; none outlives this process either. On a node without rank 0
// they run until each has ended, since rank 0 says when: no signal but SIGKILL ends them, and `output` gets nothing but
// the `failed` of a rank that did. The caller has one thread and is about to end.
// Returns what this process should exit with: kLostRankExitCode if its ranks only lost those of other nodes. If a rank
// was killed, it kills this process by the same signal: who started it sees what happened.
int RunRanks(const LocalRanks& local, const std::function<std::vector<std::string>(int rank)>& arguments_of,
             std::FILE* output);

}  // namespace luthier
