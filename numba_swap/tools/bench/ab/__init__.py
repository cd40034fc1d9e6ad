"""A/B timing: ways to move the same blocks, measured in turn, with a control in each report.

Data walks down here as in the rest of the package:

    command, verbs, progress
                        the command line, on top of everything below
    run, contenders     cells of a grid: each arm built, verified, warmed up and measured
    sampling            samples, warm-up and rounds
    own, peers/         the arms: what is measured, behind the interface of `actions`
    memory              memory to copy between, and the check of every byte
    interrupt           Ctrl-C
    tables, plots, compare, crossover, report
                        what is shown, computed from raw values each time
    results, schema     the file
    arms, cases, grids, defaults, order, effects
                        pure
"""
