"The zoofast command, verb by verb"

def main():
    "The `zoofast` command"
    from zoofast.cli.main import main
    main()
