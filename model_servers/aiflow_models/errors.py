class BadInputError(Exception):
    """One request is wrong; others of its batch are not touched."""

    def __str__(self) -> str:
        return f"BAD_INPUT: {super().__str__()}"
