"""PPO on CartPole in PyTorch and Gymnasium, as CleanRL writes it: one environment step for all, one
pass of the network, 128 times, then gradient steps on minibatches of what was played.

With a number of iterations (`--learn=244`) it trains that long by itself, and prints the mean
return of 100 episodes of the likeliest actions. Sizes and hyperparameters are those of
`experiments/ppo_cartpole.py`.
"""

import argparse
import math
from typing import Any

import numpy as np
from worker import Job, serve

import gymnasium  # isort: skip  # after the allocator's settings
import torch
from torch import nn

ENVIRONMENTS, HORIZON, EPOCHS, MINIBATCHES = 16, 128, 4, 4
TOGETHER = 20  # iterations of a turn
RATE, DISCOUNT, DECAY, CLIP, VALUE, ENTROPY, NORM = 2.5e-3, 0.99, 0.95, 0.2, 0.5, 0.01, 0.5


def head(outputs: int, scale: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, width, gain in ((4, 64, math.sqrt(2)), (64, 64, math.sqrt(2)),
                                (64, outputs, scale)):
        layers += [nn.Linear(inputs, width), nn.Tanh()]
        nn.init.orthogonal_(layers[-2].weight, gain)
        nn.init.zeros_(layers[-2].bias)
    return nn.Sequential(*layers[:-1])


class PPO:
    """The learner and its environments."""

    def __init__(self, iterations: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.iterations, self.iteration = iterations, 0
        self.policy, self.value = head(2, 0.01), head(1, 1.)
        self.parameters = [*self.policy.parameters(), *self.value.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters, RATE)
        self.envs = gymnasium.vector.SyncVectorEnv(
            [lambda: gymnasium.make("CartPole-v1")] * ENVIRONMENTS,
            autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP)
        self.observation = torch.tensor(self.envs.reset(seed=seed)[0])

    def iterate(self) -> float:
        """One iteration, and its last loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = RATE * max(1 - self.iteration / self.iterations, 0.)
        self.iteration += 1
        observations = torch.zeros(HORIZON, ENVIRONMENTS, 4)
        actions = torch.zeros(HORIZON, ENVIRONMENTS, dtype=torch.int64)
        logs, values, rewards, ended, following = torch.zeros(5, HORIZON, ENVIRONMENTS)
        for t in range(HORIZON):
            observations[t] = self.observation
            with torch.no_grad():
                distribution = torch.distributions.Categorical(logits=self.policy(self.observation))
                actions[t] = distribution.sample()
                logs[t] = distribution.log_prob(actions[t])
                values[t] = self.value(self.observation)[:, 0]
            seen, reward, terminated, truncated, more = self.envs.step(actions[t].numpy())
            self.observation = torch.tensor(seen)
            rewards[t] = torch.tensor(reward)
            ended[t] = torch.tensor(terminated | truncated, dtype=torch.float32)
            cut = np.flatnonzero(truncated & ~terminated)
            if len(cut):  # It goes on in the value of what would have come.
                last = torch.tensor(np.stack(list(more["final_obs"][cut])))
                with torch.no_grad():
                    rewards[t, cut] += DISCOUNT * self.value(last)[:, 0]
        with torch.no_grad():
            following[-1] = self.value(self.observation)[:, 0]
            following[:-1] = values[1:]
            advantages, after = torch.zeros(HORIZON, ENVIRONMENTS), torch.zeros(ENVIRONMENTS)
            for t in reversed(range(HORIZON)):
                delta = rewards[t] + DISCOUNT * following[t] * (1 - ended[t]) - values[t]
                advantages[t] = after = delta + DISCOUNT * DECAY * (1 - ended[t]) * after
        flat = [x.flatten(0, 1) for x in (observations, actions, logs, values, advantages)]
        loss = torch.zeros(())
        for _ in range(EPOCHS):
            for rows in torch.randperm(HORIZON * ENVIRONMENTS).chunk(MINIBATCHES):
                loss = self.loss(*(x[rows] for x in flat))
                self.optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.parameters, NORM)
                self.optimizer.step()
        return loss.item()

    def loss(self, observation: Any, action: Any, log: Any, value: Any, advantage: Any) -> Any:
        distribution = torch.distributions.Categorical(logits=self.policy(observation))
        ratio = (distribution.log_prob(action) - log).exp()
        error = (self.value(observation)[:, 0] - (advantage + value)).square().mean() / 2
        a = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        gain = torch.min(ratio * a, ratio.clamp(1 - CLIP, 1 + CLIP) * a).mean()
        return -gain + VALUE * error - ENTROPY * distribution.entropy().mean()

    def measured(self, count: int = 100) -> float:
        """The mean return of episodes of the likeliest actions."""
        env, total = gymnasium.make("CartPole-v1"), 0.
        for seed in range(count):
            observation, over = env.reset(seed=seed)[0], False
            while not over:
                with torch.no_grad():
                    action = int(self.policy(torch.tensor(observation)).argmax())
                observation, reward, terminated, truncated, _ = env.step(action)
                total, over = total + float(reward), terminated or truncated
        return total / count


def build() -> Job:
    learner = PPO(100_000, 0)

    def run(turns: int) -> float:
        return [learner.iterate() for _ in range(turns * TOGETHER)][-1]

    return Job(lambda: sum(p.numel() for p in learner.parameters), run, "cpu",
               f"torch {torch.__version__}, gymnasium {gymnasium.__version__}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("workload", nargs="?")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--learn", type=int, metavar="ITERATIONS")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    if flags.threads:
        torch.set_num_threads(flags.threads)
    if flags.learn:
        learner = PPO(flags.learn, flags.seed)
        for _ in range(flags.learn):
            learner.iterate()
        print(learner.measured())
    else:
        serve(build)
