"""`python -m aiflow_sdk.command` is `aiflow`, also where no scripts folder is on PATH."""

from aiflow_sdk.command.main import main

if __name__ == "__main__":
    main(prog_name="aiflow")
