"""`python -m rlhf_mini.chat`"""

from rlhf_mini.chat.session import main
from rlhf_mini.core.console import run

if __name__ == "__main__":
    run(main)
