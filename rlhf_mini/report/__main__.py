"""`python -m rlhf_mini.report`"""

from rlhf_mini.core.console import run
from rlhf_mini.report.page import main

if __name__ == "__main__":
    run(main)
