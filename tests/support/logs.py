"""What psyco_ray logs, as a list that grows."""

import logging


class _Messages(logging.Handler):
    def __init__(self, messages: list[str]) -> None:
        super().__init__()
        self.messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def messages() -> list[str]:
    """The messages of psyco_ray's loggers from now on."""
    found: list[str] = []
    logger = logging.getLogger("psyco_ray")
    logger.addHandler(_Messages(found))
    logger.setLevel(logging.INFO)
    return found
