#!/bin/bash
# A real S3 server on loopback from Debian packages: one ceph monitor, one in-memory OSD, one RADOS gateway; no systemd.
#   apt-get install -y --no-install-recommends radosgw ceph-mon ceph-osd ceph-common
#   radosgw.sh FOLDER S3_PORT     prints READY; keys test / testtest
# FOLDER is empty. Stop: kill the pids in FOLDER/{rgw,osd,mon}.pid in that order. It stops by itself once its caller is gone.
set -e
D=${1:?an empty folder}; S3=${2:?a port}
for MON in $(shuf -i 6500-6799); do (exec 3<>"/dev/tcp/127.0.0.1/$MON") 2>/dev/null || break; done
command -v radosgw ceph-mon ceph-osd ceph-authtool >/dev/null || { echo "error: apt-get install -y --no-install-recommends radosgw ceph-mon ceph-osd ceph-common" >&2; exit 2; }
mkdir -p "$D"/{mon,osd,rgw,run,log}; cd "$D"; D=$PWD
(while kill -0 $PPID 2>/dev/null; do sleep 1; done; for name in rgw osd mon; do kill -9 "$(cat $name.pid)"; done) >/dev/null 2>&1 &
cat > ceph.conf <<C
[global]
fsid = $(cat /proc/sys/kernel/random/uuid)
mon_host = [v1:127.0.0.1:$MON]
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 2000
osd_memory_target = 939524096
mon_data = $D/mon
osd_data = $D/osd
run_dir = $D/run
pid_file = $D/run/\$name.pid
admin_socket = $D/run/\$name.asok
log_file = $D/log/\$name.log
mon_cluster_log_file = $D/log/cluster.log
keyring = $D/keyring
setuser_match_path =
[mon]
mon_initial_members = a
[osd]
osd_objectstore = memstore
memstore_device_bytes = 4294967296
memstore_page_set = false
osd_max_object_name_len = 256
osd_max_object_namespace_len = 64
[client.rgw]
rgw_frontends = beast endpoint=127.0.0.1:$S3
rgw_thread_pool_size = 16
rgw_enable_usage_log = false
rgw_enable_gc_threads = false
rgw_enable_lc_threads = false
rgw_run_sync_thread = false
C
fsid=$(awk '/^fsid/ {print $3}' ceph.conf)
ceph-authtool --create-keyring keyring --gen-key -n mon. --cap mon 'allow *' >/dev/null
ceph-authtool keyring --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *' >/dev/null
monmaptool --create --fsid "$fsid" --addv a "[v1:127.0.0.1:$MON]" monmap >/dev/null
ceph-mon -c ceph.conf --mkfs -i a --monmap monmap --keyring keyring
setsid ceph-mon -c ceph.conf -i a -f > log/mon.out 2>&1 & echo $! > mon.pid
for _ in $(seq 60); do timeout 5 ceph -c ceph.conf -s >/dev/null 2>&1 && break; sleep .3; done
uuid=$(cat /proc/sys/kernel/random/uuid); id=$(ceph -c ceph.conf osd new "$uuid")
ceph-osd -c ceph.conf -i "$id" --mkfs --osd-uuid "$uuid" > log/mkfs.out 2>&1
setsid ceph-osd -c ceph.conf -i "$id" -f > log/osd.out 2>&1 & echo $! > osd.pid
for _ in $(seq 60); do timeout 5 ceph -c ceph.conf osd stat 2>/dev/null | grep -q '1 up' && break; sleep .3; done
timeout 5 ceph -c ceph.conf osd stat | grep -q '1 up' || { echo "error: the OSD did not start" >&2; tail -n 5 log/* >&2; exit 1; }
setsid radosgw -c ceph.conf -n client.rgw -f > log/rgw.out 2>&1 & echo $! > rgw.pid
for _ in $(seq 120); do curl -sf -o /dev/null "http://127.0.0.1:$S3/" && break; sleep .5; done
timeout 60 radosgw-admin -c ceph.conf user create --uid=test --display-name=test --access-key=test --secret-key=testtest >/dev/null
curl -sf -o /dev/null "http://127.0.0.1:$S3/" && echo READY
