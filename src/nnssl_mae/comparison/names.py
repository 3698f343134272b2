"""Names of the files in a comparison's folder that another comparison can be made from."""

CASES, CURVES, REST = "cases.csv", "convergence.csv", "measured.json"
