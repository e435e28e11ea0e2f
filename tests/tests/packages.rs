//! The Debian package, on a Debian that has booted with its systemd. `docs/packages.md` takes it to a certificate, in documents.rs.

use e2e::process::run;
use e2e::tools::machine;

#[test]
fn e10_a_package_is_installed_runs_and_goes_again() {
    let printed = run(machine().args(["bash", "-euxc", SCRIPT]));
    for (place, expected) in [
        ("installed", "stepward 0.1.0"),
        ("example", "OK"),
        (
            "folders",
            "755 root:root /etc/stepward\n700 root:root /etc/stepward/secrets\n2750 stepward-renew:stepward-envoy /etc/stepward/tls",
        ),
        ("sockets", "2750 stepward:stepward-filter /run/stepward/filter\n2750 stepward:stepward-admin /run/stepward/admin"),
        ("groups", "stepward-envoy : stepward-envoy stepward-filter stepward-push"),
        ("started by the installation", "disabled disabled disabled inactive inactive inactive"),
        ("no configuration", "activating"),
        ("configuration", "active"),
        ("removed", "inactive kept"),
        ("purged", "nothing"),
    ] {
        let said = printed.split_once(&format!("# {place}\n")).unwrap_or_else(|| panic!("{place}: {printed}")).1;
        let said = said.split("\n# ").next().unwrap();
        assert!(said.contains(expected), "{place}: {said}");
    }
}

const SCRIPT: &str = r##"
all() { find / -xdev -not -path "$HOME/*" -not -path '/var/lib/dpkg/*' -not -path '/var/log/*' -not -path '/var/lib/apt/*' \
    -not -path '/var/cache/*' -not -path '/var/lib/systemd/*' -not -path '/etc/*shadow*' -not -path '/tmp/*' | sort; }
all > before
dpkg --install ./stepward_*.deb > log 2>&1 || { cat log; exit 1; }
units="stepward.service stepward-envoy.service stepward-envoy-renew.timer"
echo '# installed'
stepward version
test -e /usr/share/man/man1/stepward-lock.1.gz
test -e /usr/share/bash-completion/completions/stepward
test "$(stat -c '%a %U' /usr/lib/stepward/stepward_filter.wasm)" = '644 root'
echo '# folders'
stat -c '%a %U:%G %n' /etc/stepward /etc/stepward/secrets /etc/stepward/tls
echo '# sockets'
stat -c '%a %U:%G %n' /run/stepward/filter /run/stepward/admin
echo '# groups'
groups stepward-envoy
echo '# started by the installation'
echo $(systemctl is-enabled $units || true) $(systemctl is-active $units || true)
systemd-analyze verify --man=no $units
echo '# example'
stepward init example > /dev/null
cp /usr/share/doc/stepward/examples/stepward.example.toml example/stepward.toml
stepward check-config --config example/stepward.toml
echo '# no configuration'
systemctl start --no-block stepward
until journalctl --unit stepward --no-pager | grep stepward.toml; do sleep 0.2; done
systemctl is-active stepward || true
echo '# configuration'
systemctl stop stepward
cp example/secrets/webhook /etc/stepward/secrets
cp example/devices.json /etc/stepward
cp example/tls/* /etc/stepward/tls
chown stepward-renew /etc/stepward/tls/*
chmod 640 /etc/stepward/tls/*
sed 's#file = "secrets/webhook"#file = "/run/credentials/stepward.service/secrets_webhook"#; s#^wasm.*##; s#state/stepward.db#/var/lib/stepward/stepward.db#' \
    example/stepward.toml > /etc/stepward/stepward.toml
chmod 644 /etc/stepward/stepward.toml
systemctl start stepward stepward-envoy
for n in $(seq 100); do stepward healthcheck --config /etc/stepward/stepward.toml 2> log && break; sleep 0.2; done
journalctl --unit stepward --no-pager --lines 5
test "$(stat -c %U /proc/$(systemctl show --property MainPID --value stepward))" = stepward
systemctl reload stepward
systemctl is-active stepward
echo '# removed'
touch /var/lib/stepward/kept /etc/stepward/kept
dpkg --remove stepward > log 2>&1 || { cat log; exit 1; }
echo $(systemctl is-active stepward || true) $(ls /var/lib/stepward | grep kept) && ls /etc/stepward/kept
echo '# purged'
dpkg --purge stepward > log 2>&1 || { cat log; exit 1; }
all > after
diff before after && echo nothing
"##;
