// Shows surroundings.json in the column beside each plot; written there by surroundings.py.
'use strict';

$(function () {
    $.getJSON('surroundings.json', function (surroundings) {
        var panel = $('<div class="panel panel-default"><div class="panel-heading">measured on</div>' +
                      '<div class="panel-body" style="font-size: 11px"></div></div>');
        panel.insertAfter('#graphdisplay-navigation > .panel:first');

        function line(label, value) {
            if (value) {
                $('<div>').append($('<b>').text(label + ' ')).append(document.createTextNode(value))
                    .appendTo(panel.find('.panel-body'));
            }
        }

        function show() {
            var name = $.asv.parse_hash_string(window.location.hash).location[0];
            panel.find('.panel-body').empty();
            $.each(surroundings.machines, function (i, machine) {
                line('machine', machine.machine);
                line('CPU', machine.cpu + ', ' + machine.num_cpu + ' of them');
                line('system', machine.os + ' ' + machine.arch);
                $.each(machine.runs, function (j, run) {
                    line('Python', run.python);
                    line('NumPy', run.numpy);
                    line('numba', run.numba);
                });
            });
            var spread = surroundings.spreads[name];
            line('samples', spread === undefined ? 'one, no spread' :
                 'half of them within \u00b1' + (100 * spread).toFixed(1) + ' % of the median');
        }

        $(window).on('hashchange', show);
        show();
    });
});
