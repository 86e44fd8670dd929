"""How close artifacts are to the model that they were built from, and gates that hold builds to it.

    from qtool.evaluate.evaluation import evaluate

    report = evaluate(["my-model-x64-int4"], "my-model")
    print(report.artifacts[0].kl.mean)

Where to look: `evaluation` is the whole of it; `divergence` has the formulas; `measure` runs the models side
by side; `reference` provides the model in float32; `weight_error` compares weights; `page` writes the HTML
report; `gates` and `stage` are what `qtool build` calls.
"""
