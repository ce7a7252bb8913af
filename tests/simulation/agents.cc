// Agents: how they start and crash, their sessions and heartbeats.
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/simulation/simulation.h"

namespace luthier {

void Simulation::StartAgent(Agent& agent) {
  agent.up = true;
  Say(absl::StrCat("agent ", agent.node, " starts"));
  // What an earlier life left: its trainers died with it.
  for (auto& [name, attempt] : agent.attempts) {
    if (attempt.ended) continue;
    if (attempt.finished && !attempt.stored && !attempt.stop_asked) {
      At(random_.Between(absl::Milliseconds(10), absl::Seconds(2)),
         [this, node = agent.node, name = name, life = agent.life] {
           if (agents_[node].life == life) Publish(agents_[node], name);
         });
    } else if (attempt.stored) {
      Report(agent, attempt, "FINISHED");
      attempt.ended = true;
    } else {
      Report(agent, attempt, "LOST");
      attempt.ended = true;
    }
  }
  Dial(agent);
}

void Simulation::CrashAgent(Agent& agent) {
  if (!agent.up) return;
  Say(absl::StrCat("agent ", agent.node, " crashes"));
  agent.up = false;
  ++agent.life;
  agent.processes.clear();
  Break(agent);
  At(random_.Between(absl::Seconds(1), absl::Seconds(60)), [this, node = agent.node] {
    if (!agents_[node].up) StartAgent(agents_[node]);
  });
}

void Simulation::Dial(Agent& agent) {
  if (!agent.up || agent.link != 0) return;
  if (!state_ || now_ < agent.partitioned_until) {
    At(random_.Between(absl::Milliseconds(500), absl::Seconds(5)), [this, node = agent.node, life = agent.life] {
      if (agents_[node].life == life) Dial(agents_[node]);
    });
    return;
  }
  agent.link = ++last_link_;
  agent.link_since = now_;
  links_[agent.link] = {.node = agent.node, .server_life = server_life_, .to_server = now_, .to_agent = now_};
  Register(agent, agent.link);
  const int id = agent.link;
  // Heartbeats for as long as the session lasts.
  const auto beat = std::make_shared<std::function<void()>>();
  *beat = [this, node = agent.node, id, beat] {
    Agent& beating = agents_[node];
    if (beating.link != id) return;
    Heartbeat(beating);
    At(kHeartbeatInterval, *beat);
  };
  At(kHeartbeatInterval, *beat);
}

void Simulation::Heartbeat(Agent& agent) {
  ToServer(agent, [this, node = agent.node, processes = ProcessesOf(agent)] {
    Post(
        [node, processes](State& state, absl::Time now) {
          state.Heartbeat(node, "", processes, false, now);
          return absl::OkStatus();
        },
        [](const absl::Status&) {});
  });
}

Processes Simulation::ProcessesOf(const Agent& agent) {
  Processes processes;
  for (const Process& process : agent.processes) processes[process.attempt] = process.devices;
  return processes;
}

void Simulation::Register(Agent& agent, int id) {
  std::vector<std::string> attempts;
  for (const auto& [name, attempt] : agent.attempts) attempts.push_back(name);
  ToServer(agent, [this, node = agent.node, devices = agent.devices, processes = ProcessesOf(agent), attempts, id] {
    const auto before = sessions_.find(node);
    if (before != sessions_.end() && before->second != id) ToAgent(before->second, [this](Agent& a) { Break(a); });
    sessions_[node] = id;
    const auto stale = std::make_shared<std::vector<std::string>>();
    const auto acks = std::make_shared<std::map<std::string, int64_t>>();
    Post(
        [node, devices, processes, attempts, stale, acks](State& state, absl::Time now) {
          Node registered{.id = node, .devices = devices, .gpus = true, .gang_address = node, .gang_port = 29400};
          registered.processes = processes;
          *stale = state.Register(std::move(registered), attempts, now);
          for (const std::string& name : attempts) {
            const std::optional<AttemptId> attempt = ParseAttemptName(name);
            if (!attempt || !state.IsCurrent(*attempt)) continue;
            const Job& job = *state.Find(attempt->job);
            (*acks)[name] = job.node == node ? job.last_report : 0;
          }
          return absl::OkStatus();
        },
        [this, id, stale, acks](const absl::Status& status) {
          if (!status.ok()) {
            ToAgent(id, [this](Agent& a) { Break(a); });
            return;
          }
          links_[id].registered = true;
          ToAgent(id, [this, stale, acks](Agent& a) {
            a.registered = true;
            a.sent.clear();
            for (const std::string& name : *stale) {
              Kill(a, name, absl::ZeroDuration());
              Remove(a, name);
            }
            for (auto& [name, attempt] : a.attempts) {
              const int64_t acknowledged = acks->count(name) > 0 ? acks->at(name) : 0;
              std::erase_if(attempt.reports, [&](const Entry& entry) { return entry.sequence <= acknowledged; });
              a.sent[name] = acknowledged;
            }
            SendReports(a);
          });
          for (auto& order : std::exchange(links_[id].held, {})) ToAgent(id, std::move(order));
        });
  });
}

}  // namespace luthier
