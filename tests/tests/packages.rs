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
        ("no configuration", "refused, activating"),
        ("configuration", "active"),
        ("a change waits", "WAITS FOR A START: it was changed"),
        ("a CA that is not named", "no CA is named in /etc/stepward/step"),
        ("nothing to renew", "/etc/stepward/tls/server.crt is not due yet"),
        ("a CA that may not be read", "no CA is named in /etc/stepward/step, or the user stepward-renew may not read it"),
        ("a certificate that is gone", "/etc/stepward/tls/server.crt is not there, or the user stepward-renew may not read it"),
        ("a key that may not be read", "/etc/stepward/tls/server.key is not there, or the user stepward-renew may not read it"),
        ("upgraded", "other processes, active active active"),
        ("upgraded over a mistake", "stepward.service was NOT started again"),
        ("upgraded over a mistake", "other.toml"),
        ("upgraded over a mistake", "the same processes, active active active"),
        ("a configuration that Envoy may not read", "stepward-envoy.service was NOT started again"),
        ("a configuration that Envoy may not read", "the same Envoy, active active active"),
        ("removed", "inactive kept"),
        ("installed again", "enabled enabled enabled inactive inactive inactive"),
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
systemctl enable $units
if systemctl start stepward; then exit 1; fi
if systemctl start stepward-envoy; then exit 1; fi
journalctl --unit stepward --no-pager | grep stepward.toml
echo "refused, $(systemctl is-active stepward)"
echo '# configuration'
systemctl stop $units
cp example/secrets/webhook /etc/stepward/secrets
cp example/devices.json /etc/stepward
cp example/tls/* /etc/stepward/tls
chown stepward-renew /etc/stepward/tls/*
chmod 640 /etc/stepward/tls/*
sed 's#file = "secrets/webhook"#file = "/run/credentials/stepward.service/secrets_webhook"#; s#^wasm.*##; s#state/stepward.db#/var/lib/stepward/stepward.db#' \
    example/stepward.toml > /etc/stepward/stepward.toml
chmod 644 /etc/stepward/stepward.toml
systemctl start $units
stepward healthcheck --config /etc/stepward/stepward.toml
journalctl --unit stepward --no-pager --lines 5
test "$(stat -c %U /proc/$(systemctl show --property MainPID --value stepward))" = stepward
systemctl reload stepward
systemctl is-active stepward
echo '# a change waits'
sed -i 's/^\[listen\]/[listen]\nuids = { query = [0] }/' /etc/stepward/stepward.toml
systemctl reload stepward
stepward reload --config /etc/stepward/stepward.toml --socket /run/stepward/admin/admin.sock
renewal() {
    since=$(date '+%F %T.%N')
    "$@" systemctl start stepward-envoy-renew
    journalctl --sync
    journalctl --unit stepward-envoy-renew --since "$since" --output cat --no-pager
}
fails() { if "$@"; then false; fi; }
echo '# a CA that is not named'
renewal fails
systemctl is-failed stepward-envoy-renew
echo '# nothing to renew'
install -d /etc/stepward/step/config
echo '{}' > /etc/stepward/step/config/defaults.json
renewal env
echo '# a CA that may not be read'
chmod 700 /etc/stepward/step
renewal fails
chmod 755 /etc/stepward/step
echo '# a certificate that is gone'
mv /etc/stepward/tls/server.crt kept.crt
renewal fails
mv kept.crt /etc/stepward/tls/server.crt
echo '# a key that may not be read'
chown root:root /etc/stepward/tls/server.key
renewal fails
chown stepward-renew:stepward-envoy /etc/stepward/tls/server.key
echo '# upgraded'
test -e /usr/share/doc/stepward/docs/locks.md
mkdir -p /run/systemd/system/stepward.service.d
printf '[Service]\nExecStart=\nExecStart=/usr/bin/stepward serve --config /etc/stepward/other.toml\n' > /run/systemd/system/stepward.service.d/other.conf
# What a process has among its variables is its own to choose, and nothing that root goes by.
mkdir /tmp/chosen
printf '#!/bin/sh\necho "$0 as $(id -u)" >> /tmp/chosen/ran\n' | tee /tmp/chosen/runuser /tmp/chosen/perl > /tmp/chosen/stepward
chmod 755 /tmp/chosen/*
printf '[Service]\nEnvironment=PATH=/tmp/chosen:/usr/bin:/bin\n' > /run/systemd/system/stepward.service.d/chosen.conf
cp /etc/stepward/stepward.toml /etc/stepward/other.toml
systemctl daemon-reload
systemctl restart stepward
processes() { systemctl show --property MainPID --value stepward stepward-envoy | xargs; }
upgrade() { apt-get install --yes --reinstall ./stepward_*.deb > log 2>&1 || { cat log; exit 1; }; }
before=$(processes)
upgrade
for process in $before; do test ! -e /proc/$process; done
test ! -e /tmp/chosen/ran || { cat /tmp/chosen/ran; exit 1; }
echo "other processes, $(systemctl is-active $units | xargs)"
echo '# upgraded over a mistake'
before=$(processes)
echo 'mistake = 1' >> /etc/stepward/other.toml
upgrade
grep stepward: log
grep mistake: log
test "$before" = "$(processes)"
echo "the same processes, $(systemctl is-active $units | xargs)"
sed -i '$d' /etc/stepward/other.toml
echo '# a configuration that Envoy may not read'
chown stepward /etc/stepward/other.toml
chmod 600 /etc/stepward/other.toml
upgrade
grep stepward: log
test "${before#* }" = "$(processes | cut -d' ' -f2)"
echo "the same Envoy, $(systemctl is-active $units | xargs)"
echo '# removed'
touch /var/lib/stepward/kept /etc/stepward/kept
dpkg --remove stepward > log 2>&1 || { cat log; exit 1; }
echo $(systemctl is-active stepward || true) $(ls /var/lib/stepward | grep kept) && ls /etc/stepward/kept
echo '# installed again'
dpkg --install ./stepward_*.deb > log 2>&1 || { cat log; exit 1; }
echo $(systemctl is-enabled $units || true) $(systemctl is-active $units || true)
echo '# purged'
dpkg --purge stepward > log 2>&1 || { cat log; exit 1; }
all > after
diff before after && echo nothing
"##;
