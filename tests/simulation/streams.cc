// The streams between agents and the server: messages arrive late and in order, until a stream breaks.
#include <algorithm>
#include <utility>

#include "tests/simulation/simulation.h"

namespace luthier {

void Simulation::ToServer(Agent& agent, std::function<void()> handle) {
  const int id = agent.link;
  if (id == 0) return;
  Link& link = links_[id];
  link.to_server = std::max(link.to_server, now_ + random_.Between(absl::Milliseconds(1), absl::Milliseconds(50)));
  At(link.to_server - now_, [this, id, life = link.server_life, handle = std::move(handle)] {
    if (!state_ || life != server_life_) return;
    // What was under way when the stream broke may arrive late, or never from some message on.
    Link& link = links_[id];
    link.lost |= link.broken && random_.Chance(0.3);
    if (!link.lost) handle();
  });
}

void Simulation::ToAgent(int id, std::function<void(Agent&)> handle) {
  Link& link = links_[id];
  link.to_agent = std::max(link.to_agent, now_ + random_.Between(absl::Milliseconds(1), absl::Milliseconds(50)));
  At(link.to_agent - now_, [this, id, handle = std::move(handle)] {
    Agent& agent = agents_[links_[id].node];
    if (agent.link == id && agent.roster != nullptr) handle(agent);
  });
}

// As server/rpc/sessions does it.
void Simulation::Order(int id, std::function<void(Agent&)> handle) {
  Link& link = links_[id];
  if (link.registered) return ToAgent(id, std::move(handle));
  link.held.push_back(std::move(handle));
}

// The agent's end closes now; the server hears of it later, or not before the lease runs out.
void Simulation::Break(Agent& agent) {
  const int id = std::exchange(agent.link, 0);
  if (id == 0) return;
  agent.registered = false;
  Link& link = links_[id];
  link.broken = true;
  ++counts_.breaks;
  const int64_t life = link.server_life;
  At(random_.Between(absl::Milliseconds(1), absl::Seconds(40)), [this, id, life, node = agent.node] {
    if (!state_ || life != server_life_) return;
    const auto session = sessions_.find(node);
    if (session == sessions_.end() || session->second != id) return;  // a newer one replaced it
    sessions_.erase(session);
    Post(
        [node](State& state, absl::Time) {
          state.Disconnect(node);
          return absl::OkStatus();
        },
        [](const absl::Status&) {});
  });
  if (agent.roster != nullptr) {
    At(random_.Between(absl::Milliseconds(200), absl::Seconds(3)), [this, node = agent.node, life = agent.life] {
      if (agents_[node].life == life) Dial(agents_[node]);
    });
  }
}

}  // namespace luthier
