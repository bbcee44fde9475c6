#!/bin/sh
# Makes the archives beside it anew, of one small tree, with the tools that people have: GNU tar, bsdtar, Info-ZIP, 7-Zip.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
cd "$work"
mkdir -p photos/a photos/b "photos/sub dir" photos/__MACOSX photos/.thumbs "photos/deep/$(printf 'x%.0s' $(seq 120))/$(printf 'y%.0s' $(seq 120))"
cd photos
for n in 1 2 3 4; do printf "image $n" > "$n"; done
mv 1 a/1.png; mv 2 a/2.png; mv 3 b/3.png; mv 4 "sub dir/é 4.png"
printf "image 5" > "$(echo deep/*/*)/long.png"
truncate -s 65536 a/sparse.png; printf "image 6" | dd of=a/sparse.png bs=1 seek=40000 conv=notrunc status=none
printf x | tee .DS_Store Thumbs.db desktop.ini a/._1.png __MACOSX/x.png .thumbs/x.png > /dev/null
: > b/empty.png
ln b/3.png b/twin.png
ln -s ../a/1.png b/soft.png; ln -s soft.png b/softer.png; ln -s a alias; ln -s .. b/loop; ln -s ../../outside b/dead.png
rm -f "$here"/*.gz "$here"/*.zip
tar czf "$here/gnu.tar.gz" .
tar czSf "$here/gnu-sparse.tar.gz" .
tar czSf "$here/pax-sparse.tar.gz" --format=pax .
tar czf "$here/v7.tar.gz" --format=v7 --exclude=deep .
bsdtar -czf "$here/bsdtar.tar.gz" .
bsdtar -cf "$here/bsdtar.zip" --format=zip .
zip -qry "$here/info-zip.zip" .
zip -qry -fz "$here/info-zip-64.zip" .
zip -qry -fd "$here/info-zip-streamed.zip" .
zip -qry -P secret "$here/info-zip-encrypted.zip" .
rm b/loop b/dead.png  # which 7-Zip refuses
7z a -bd "$here/7-zip.zip" . > /dev/null
7z a -bd -psecret -mem=AES256 "$here/7-zip-encrypted.zip" . > /dev/null
