#!/bin/sh
# Puts Apache Kafka's jars, for the tests, into .tools/kafka/libs with Maven, and what Java has loaded of them beside
# them, where it can. Does nothing when they are there already. Needs what `tools/setup.sh dev` installs.
set -eu
cd "$(dirname "$0")/.."

pom=tests/support/kafka_broker/pom.xml
target=.tools/kafka
wanted=$(cksum <"$pom")

java_version() {
  java -XshowSettings:properties -version 2>&1 | sed -n 's/^ *java\.specification\.version = \([0-9]*\).*/\1/p'
}

has_java() {
  command -v java >/dev/null 2>&1 && [ "$(java_version)" -ge 17 ] 2>/dev/null
}

are_there() {
  [ "$(cat "$target/stamp" 2>/dev/null || true)" = "$wanted" ]
}

# Brokers start without the classes, too, only slower: that this Java does not keep any stops nobody.
keep_classes() {
  [ -e "$target/classes.jsa" ] || .venv/bin/python -m tests.support.kafka >/dev/null 2>&1 ||
    echo "No classes of Kafka's were kept, so its brokers start slower: .venv/bin/python -m tests.support.kafka says why."
}

if has_java && are_there; then
  keep_classes
  exit 0
fi

if ! has_java || ! command -v mvn >/dev/null 2>&1; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "Installing a Java runtime and Maven, which the tests' Kafka needs."
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends maven default-jdk-headless >/dev/null
  fi
fi
if ! has_java; then
  echo "The tests run a real Kafka, which needs Java 17 or later: install it, so that 'java' is on the PATH." >&2
  exit 1
fi

if ! command -v mvn >/dev/null 2>&1; then
  echo "The tests run a real Kafka, whose jars Maven fetches: install Maven, so that 'mvn' is on the PATH." >&2
  exit 1
fi

echo "Fetching Apache Kafka's jars with Maven."
rm -rf "$target"
mkdir -p "$target"
mvn -B -q -Dstyle.color=never -f "$pom" dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$PWD/$target/libs"
echo "$wanted" >"$target/stamp"
keep_classes
