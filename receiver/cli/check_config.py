"""`check-config`: what is wrong with the settings, or what they are."""

from receiver.cli.options import ConfigOption, DataOption, KafkaOption, overrides
from receiver.console import console, settings_text
from receiver.settings import layers


def check_config(config: ConfigOption = None, data: DataOption = None, kafka: KafkaOption = None) -> None:
    """Name every wrong setting, or print the settings in force."""
    places = layers(config, overrides(data=data, kafka=kafka))
    settings = places.settings()
    out = console()
    out.print("configuration is valid", style="green")
    out.print(settings_text(settings, places), soft_wrap=True)
