"""How fast an artifact runs on this machine, and how fast other engines run the same model.

    from qtool.bench.benchmark import benchmark

    report = benchmark("my-artifact")
    print(report.to_dict()["engines"]["qtool"]["decode"])

Where to look: `benchmark` is the whole of it; `rounds` says how engines take turns, and why; `worker` drives
one engine and is the only file that knows the engines' packages; `measures` and `report` sum up.
"""
