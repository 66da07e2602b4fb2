"""Load tests: the proxy as it is started by people, a demo engine behind it, clients that compare every answer."""
