"""`python -m rlhf_mini.doctor`"""

from rlhf_mini.core.console import run
from rlhf_mini.doctor.diagnose import main

if __name__ == "__main__":
    run(main)
