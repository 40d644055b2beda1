"""The scheduler of scripts/restore.py over a thousand hosts that die, come back, hang and are slow, on a virtual clock.

    python3 dev/host_env.py run -- benchmarks/scale_simulation.py [--hosts 1000 --photos 100000 --seed 0]

The scheduler's own code decides; hosts are numbers (tests/harness/fleet.py). makespan: until the last photo is done.
bound: all work over the speeds of the hosts while they were up, which no schedule can beat, as it never loses any.
Target: makespan at most 5 % and two slow photos over the bound, nothing lost, nothing doubled. scheduling: real time in
the scheduler's code for each photo, which a client has to spend, too.
"""

from __future__ import annotations

import argparse
import time

from harness.fleet import CALM, Fleet, Weather

WEATHERS = {
    "calm": CALM,
    "failures and stragglers": Weather(),
    "every host dies about hourly": Weather(between_deaths=3600.0, hanging=0.01, slow_hosts=0.1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=1000)
    parser.add_argument("--photos", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    print("| weather | photos | makespan s | bound s | over | deaths | copies | doubled | lost | ms a photo |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for name, weather in WEATHERS.items():
        start = time.perf_counter()
        story = Fleet(asked.hosts, asked.photos, weather, asked.seed).run()
        over = story.makespan / story.bound - 1
        print(
            f"| {name} | {story.photos} | {story.makespan:.0f} | {story.bound:.0f} | {over:+.1%} | {story.deaths} "
            f"| {story.copies} | {story.doubled} | {story.lost + story.failed} "
            f"| {1000 * story.scheduling / story.photos:.2f} |",
            flush=True,
        )
        print(f"<!-- {time.perf_counter() - start:.0f} s of real time -->", flush=True)


if __name__ == "__main__":
    main()
